import re

import pytest

from antibody_llm.data.verdicts import Preference
from antibody_llm.errors import ConfigError
from antibody_llm.evaluation import http
from antibody_llm.evaluation.http import EndpointFailed
from antibody_llm.evaluation.judges.preference import read_choice
from antibody_llm.evaluation.judges.registry import make_preference_judge
from tests.evaluation.scripted import said, serving

WON, LOST, TIED = Preference.WON, Preference.LOST, Preference.TIED
INCONSISTENT, UNPARSED = Preference.INCONSISTENT, Preference.UNPARSED


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(http, "FIRST_WAIT", 0.001)
    monkeypatch.delenv("ANTIBODY_JUDGE_KEY", raising=False)


def answers(body):
    """The two answers of a question, as the judge is shown them."""
    return re.findall(r"<answer [AB]>\n(.*?)\n</answer", body["messages"][0]["content"], re.DOTALL)


def longer(number, path, body):
    """A judge that likes the longer answer, wherever it is."""
    first, second = map(len, answers(body))
    return said("TIE" if first == second else "A" if first > second else "B")


def compared(url, completions, references, options=""):
    judge = make_preference_judge(f"chat={url}#model=big{options}")
    found = dict(judge.comparisons([f"q{n}" for n in range(len(completions))], completions, references))
    return [found[n] for n in range(len(completions))]


def test_both_orders_have_to_say_the_same():
    with serving(longer) as served:
        found = compared(served.url, ["long answer", "short", "equal"], ["short", "long answer", "eQual"])
    assert [each.preference for each in found] == [WON, LOST, TIED]
    assert [each.note for each in found] == ["A | B", "B | A", "TIE | TIE"]
    shown = [answers(body) for _, body, _ in served.calls]
    assert sorted(shown)[:2] == [["eQual", "equal"], ["equal", "eQual"]]
    assert {(body["model"], body["temperature"]) for _, body, _ in served.calls} == {("big", 0)}
    assert served.calls[0][0] == "/v1/chat/completions"


def test_a_judge_that_chooses_a_place_wins_nothing():
    with serving(lambda *_: said("A")) as served:
        (found,) = compared(served.url, ["x"], ["y"])
    assert found.preference is INCONSISTENT


@pytest.mark.parametrize(
    ("in_first", "in_second", "outcome"),
    [
        ("A", "B", WON),
        ("B", "A", LOST),
        ("TIE", "tie.", TIED),
        ("A", "TIE", INCONSISTENT),
        ("B", "B", INCONSISTENT),
        ("A", "", UNPARSED),
        ("I cannot judge that.", "B", UNPARSED),
        (None, "B", UNPARSED),
    ],
)
def test_an_outcome_is_what_both_replies_come_to(in_first, in_second, outcome):
    def script(number, path, body):
        return said(in_first if answers(body)[0] == "model" else in_second)

    with serving(script) as served:
        assert compared(served.url, ["model"], ["reference"])[0].preference is outcome


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("A", WON),
        ("a", WON),
        (" **A**\n", WON),
        ("(A).", WON),
        ("[[A]]", WON),
        ("Answer A", WON),
        ("B", LOST),
        ("TIE", TIED),
        ("", UNPARSED),
        ("A or B", UNPARSED),
        ("A B", UNPARSED),
        ("AB", UNPARSED),
        ("Neither", UNPARSED),
        ("A is better, because", UNPARSED),
        ("I'm sorry, but I can't help with that.", UNPARSED),
        ("{}", UNPARSED),
        ("\ud800", UNPARSED),
        ("C", UNPARSED),
    ],
)
def test_only_one_of_three_words_is_a_choice(reply, choice):
    assert read_choice(reply, model_first=True) is choice
    swapped = {WON: LOST, LOST: WON}.get(choice, choice)
    assert read_choice(reply, model_first=False) is swapped


def test_a_random_order_asks_once_and_is_the_same_for_every_model():
    with serving(longer) as served:
        first = compared(served.url, ["one model's"] * 16, ["ref"] * 16, ",order=random")
        again = compared(served.url, ["another model's"] * 16, ["ref"] * 16, ",order=random")
    assert len(served.calls) == 32
    assert {each.preference for each in (*first, *again)} == {WON}
    assert [each.note for each in first] == [each.note for each in again]
    assert {each.note for each in first} == {"A", "B"}


def test_texts_with_places_of_the_prompt_in_them_stay_as_they_are():
    with serving(lambda *_: said("TIE")) as served:
        compared(served.url, ["a {second} {prompt}"], ["b {first}"])
    assert sorted(answers(served.calls[0][1])) == ["a {second} {prompt}", "b {first}"]


def test_a_comparison_that_the_endpoint_refuses_is_unparsed_and_the_others_are_made():
    def script(number, path, body):
        return (400, {}, {"error": "too long"}) if "huge" in answers(body) else longer(number, path, body)

    with serving(script) as served:
        found = compared(served.url, ["long answer", "huge", "long answer"], ["short"] * 3)
    assert [each.preference for each in found] == [WON, UNPARSED, WON]
    assert "too long" in found[1].note


def test_an_endpoint_that_dies_yields_the_rows_whose_orders_have_all_come():
    def script(number, path, body):
        return longer(number, path, body) if number < 5 else (503, {}, {})

    with serving(script) as served:
        judge = make_preference_judge(f"chat={served.url}#model=big,concurrency=1")
        came, comparisons = [], judge.comparisons(["q"] * 6, ["long answer"] * 6, ["short"] * 6)
        with pytest.raises(EndpointFailed, match="status 503"):
            came.extend(comparisons)
    assert [number for number, _ in came] == [0, 1]


@pytest.mark.parametrize(
    ("name", "said_of"),
    [
        ("keywords", "it compares no answers. Name a chat model"),
        ("moderation=http://x/v1", "it compares no answers"),
        ("chat", "it needs a place. Write chat=URL"),
        ("chat=http://x/v1", "needs the name of its model"),
        ("chat=http://x/v1#model=m,order=first", "chat.order is 'first': it must be both or random"),
        ("chat=http://x/v1#model=m,ordr=both", "no such option; did you mean 'order'"),
        ("chat=http://x/v1#model=m,timeout=0", "must be above 0"),
        ("chat=x#model=m", "no URL of an endpoint"),
    ],
)
def test_a_judge_that_cannot_compare_is_refused_with_its_setting(name, said_of):
    with pytest.raises(ConfigError, match=said_of) as refused:
        make_preference_judge(name)
    assert refused.value.field.startswith("preference_judge")
