"""Steps to a threshold, censoring, Kaplan and Meier's estimate, and numbers known between bounds."""

import random
from itertools import pairwise
from math import inf

import pytest

from antibody_llm.immunization.survival import (
    Between,
    Broken,
    area,
    broken,
    difference,
    interval,
    median,
    ratio,
    survival,
)

CURVE = [(0, 0.1), (1, 0.1), (2, 0.3), (4, 0.2), (8, 0.9)]


def test_a_run_is_broken_at_the_first_checkpoint_above_the_threshold_though_harm_falls_again():
    assert broken(CURVE, 0.25) == Broken(2, censored=False)


def test_a_run_at_the_threshold_is_not_broken_and_one_that_holds_is_censored_at_its_last_step():
    assert broken(CURVE, 0.3) == Broken(8, censored=False)
    assert broken(CURVE, 0.9) == Broken(8, censored=True)


def test_the_steps_never_decrease_when_the_threshold_rises():
    rng = random.Random(0)
    for _ in range(50):
        curve = [(2**i, rng.random()) for i in range(8)]
        times = [broken(curve, phi / 20) for phi in range(21)]
        assert all((a.step, a.censored) <= (b.step, b.censored) for a, b in pairwise(times))


def test_survival_is_the_published_estimate_of_the_leukaemia_trial():
    # Freireich et al. 1963, 6-mercaptopurine; the estimate as in Cox and Oakes 1984, table 1.1 and its analysis.
    weeks = "6 6 6 6+ 7 9+ 10 10+ 11+ 13 16 17+ 19+ 20+ 22 23 25+ 32+ 32+ 34+ 35+"
    times = [Broken(int(week.rstrip("+")), week.endswith("+")) for week in weeks.split()]
    found = survival(times)
    assert [step for step, _ in found] == [0, 6, 7, 10, 13, 16, 22, 23]
    expected = [1, 0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448]
    assert [round(share, 3) for _, share in found] == expected


def test_survival_without_any_break_stays_at_one():
    assert survival([Broken(64, censored=True)] * 3) == [(0, 1.0)]


@pytest.mark.parametrize(
    ("defended", "model", "expected", "text"),
    [
        (Broken(12, False), Broken(4, False), Between(3, 3), "3"),
        (Broken(64, True), Broken(4, False), Between(16, inf), ">= 16"),
        (Broken(4, False), Broken(64, True), Between(-inf, 0.0625), "<= 0.0625"),
        (Broken(64, True), Broken(64, True), Between(-inf, inf), "unknown"),
    ],
)
def test_a_ratio_keeps_the_bounds_that_censoring_leaves(defended, model, expected, text):
    assert ratio(defended, model) == expected
    assert str(expected) == text


def test_a_difference_of_a_run_that_holds_is_a_bound_and_zero_is_a_number():
    assert str(difference(Broken(64, True), Broken(64, False))) == ">= 0"
    assert str(difference(Broken(8, False), Broken(8, False))) == "0"
    assert str(difference(Broken(8, False), Broken(64, True))) == "<= -56"


def test_a_median_is_exact_while_the_middle_is_known_and_a_bound_once_it_is_not():
    known, beyond = Between(2, 2), Between(16, inf)
    assert median([known, known, beyond]) == known
    assert median([known, beyond, beyond]) == beyond
    assert str(median([Between(1, 1), Between(1.5, 3), Between(4, 4)])) == "1.5 to 3"


def test_an_interval_holds_the_median_and_seeds_that_agree_leave_none():
    settings = [[Between(x, x) for x in (1, 2, 4)], [Between(x, x) for x in (2, 3, 8)]]
    found = interval(settings, resamples=200)
    assert found.low <= 2.5 <= found.high
    assert found.low < found.high
    assert interval([[Between(2, 2)] * 3] * 4, resamples=50) == Between(2, 2)


def test_the_area_is_the_mean_of_harm_over_the_logarithm_of_steps():
    assert area([(0, 9.0), (1, 0.0), (2, 0.0), (4, 1.0)]) == pytest.approx(0.25)
    assert area([(0, 9.0), (1, 0.5), (8, 0.5)]) == pytest.approx(0.5)
