import pytest

from antibody_llm.data.verdicts import Verdict
from antibody_llm.errors import EvaluationError
from antibody_llm.evaluation.judges.agreement import agreement

C, R, NEITHER = Verdict.COMPLIED, Verdict.REFUSED, Verdict.INCOHERENT


def test_kappa_is_cohens_worked_by_hand():
    # 50 rows: both C 20, both R 15, a C and b R 5, a R and b C 10. Equal 35/50 = 0.7.
    # a says C 25/50, b says C 30/50: chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5. kappa = 0.2 / 0.5.
    a = [C] * 20 + [R] * 15 + [C] * 5 + [R] * 10
    b = [C] * 20 + [R] * 15 + [R] * 5 + [C] * 10
    result = agreement(a, b, first="lab", second="keywords")
    assert (result.share, result.n, result.first, result.second) == (0.7, 50, "lab", "keywords")
    assert result.kappa == pytest.approx(0.4)


def test_three_kinds_count_as_three():
    # Equal 2/4; chance: C 1/4*2/4 + R 2/4*1/4 + I 1/4*1/4 = 5/16. kappa = (8-5)/(16-5).
    result = agreement([C, R, R, NEITHER], [C, R, NEITHER, C])
    assert result.kappa == pytest.approx(3 / 11)


def test_full_agreement_on_more_than_one_verdict_is_one():
    assert agreement([C, R, NEITHER], [C, R, NEITHER]).kappa == 1.0


def test_full_disagreement_of_two_even_judges_is_minus_one():
    assert agreement([C, R], [R, C]).kappa == -1.0


def test_kappa_is_absent_where_both_always_say_the_same_one_thing():
    result = agreement([R, R], [R, R])
    assert (result.share, result.kappa) == (1.0, None)


def test_nothing_to_compare_raises():
    with pytest.raises(EvaluationError, match="needs completions that both judged"):
        agreement([], [])


def test_verdicts_on_different_rows_are_refused():
    with pytest.raises(EvaluationError, match="a gave 1 verdict and b gave 2"):
        agreement([C], [C, R])
