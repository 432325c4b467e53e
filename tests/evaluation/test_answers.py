from decimal import Decimal

import pytest

from antibody_llm.errors import ConfigError
from antibody_llm.evaluation.answers import UnreadableReference, answer_rule, contains, exact, gsm8k, number_answer


@pytest.mark.parametrize(
    ("completion", "reference", "right"),
    [
        ("Positive", "positive", True),
        ("  positive.\n", "positive", True),
        ("Sci/Tech", "sci/tech", True),
        ("very\npositive", "very positive", True),
        ("positive negative", "positive", False),
        ("", "positive", False),
        ("not positive", "positive", False),
    ],
)
def test_exact_ignores_case_space_and_a_closing_stop_only(completion, reference, right):
    assert exact(completion, reference) is right


@pytest.mark.parametrize(
    ("completion", "right"), [("It is World.", True), ("worldly", False), ("underworld", False), ("(world)", True)]
)
def test_contains_asks_for_whole_words(completion, right):
    assert contains(completion, "World") is right


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 + 4 = 7\n#### 7", "7"),
        ("#### 7 Question: 2 and 2? #### 4", "7"),
        ("The final answer is:  1,234.50 dollars, of 9", "1234.5"),
        ("the final answer is 12.", "12"),
        ("so 3 and then 15.", "15"),
        ("#### none, or 8", "8"),
        ("it costs $18.00", "18"),
        ("-5", "-5"),
        ("#### -$5", "-5"),
        ("10-5", "5"),
        ("3,4", "4"),
        ("1,000,000", "1000000"),
        ("about .5", "0.5"),
    ],
)
def test_a_numeric_answer_stands_after_the_marker_or_last(text, number):
    assert number_answer(text) == Decimal(number)


def test_a_text_without_a_number_has_no_numeric_answer():
    assert number_answer("#### none") is None


@pytest.mark.parametrize(
    ("completion", "right"), [("#### 18.0", True), ("18", True), ("#### 19", False), ("no idea", False), ("", False)]
)
def test_gsm8k_compares_numbers_and_counts_an_unreadable_completion_wrong(completion, right):
    assert gsm8k(completion, "9 + 9 = 18\n#### 18") is right


@pytest.mark.parametrize(("rule", "reference"), [(gsm8k, "no number"), (exact, " . "), (contains, "")])
def test_an_unreadable_reference_is_an_error_even_where_the_completion_is_unreadable_too(rule, reference):
    with pytest.raises(UnreadableReference):
        rule("", reference)


def test_an_unknown_rule_offers_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'gsm8k'"):
        answer_rule("gsm8")
