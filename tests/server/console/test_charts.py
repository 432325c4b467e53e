"""Geometry of the pictures."""

import math

import pytest

from antibody_llm.server.console.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    histogram,
    loss_chart,
    nice,
    share_chart,
    smoothed,
    span,
    thinned,
)


def test_the_first_point_is_left_the_last_is_right_and_zero_is_at_the_bottom():
    chart = loss_chart([(1, 2.0), (2, 1.0), (5, 0.0)])
    assert chart.curves[0].path.startswith(f"M{LEFT:g} {TOP:g} L")
    assert chart.curves[0].last == (WIDTH - RIGHT, HEIGHT - BOTTOM)
    assert chart.curves[1] == chart.curves[0]  # three points are too few to be smoothed
    assert [tick.label for tick in chart.x_ticks] == ["1", "2", "3", "4", "5"]
    assert (chart.y_ticks[0].label, chart.y_ticks[-1].label) == ("0", "2")


@pytest.mark.parametrize("points", [[], [(1, 0.5)], [(1, math.nan), (2, 1.0)], [(1, math.inf), (2, math.nan)]])
def test_a_line_needs_two_points_that_are_numbers(points):
    assert loss_chart(points) is None


def test_a_loss_that_does_not_change_and_one_that_is_negative_are_drawn():
    assert loss_chart([(1, 0.0), (2, 0.0)]).curves[0].last[1] == HEIGHT - BOTTOM
    assert loss_chart([(1, -2.0), (2, -1.0)]).y_ticks[0].label == "-2"


def test_many_points_are_thinned_and_the_highest_stays():
    points = [(i, 1.0) for i in range(10_000)]
    points[5_003] = (5_003, 9.0)
    few = thinned(points)
    assert len(few) <= 242
    assert few[0] == points[0]
    assert few[-1] == points[-1]
    assert points[5_003] in few


def test_the_second_curve_is_the_mean_over_a_fifteenth_of_the_steps():
    points = [(i, float(i % 2)) for i in range(30)]
    assert smoothed(points)[0] == (0, 0.0)
    assert {y for _, y in smoothed(points)[1:]} == {0.5}


def test_shares_are_drawn_with_their_intervals_on_an_axis_that_fits_them():
    chart = share_chart([[(4, 0.5, 0.25, 0.75)], []], limits=[0.0])
    (whisker,) = chart.curves[0].whiskers
    middle = (TOP + HEIGHT - BOTTOM) / 2
    assert whisker.y == middle
    assert whisker.low - middle == middle - whisker.high
    assert chart.limits == (HEIGHT - BOTTOM,)
    assert LEFT < whisker.x < WIDTH - RIGHT
    assert [tick.label for tick in share_chart([[(4, 0.01, 0.0, 0.04)]], [0.1]).y_ticks] == [
        *("0 %", "2 %", "4 %", "6 %", "8 %", "10 %")
    ]
    assert share_chart([[], []]) is None


def test_bars_reach_from_the_floor_to_their_count():
    bars, ticks = histogram(["a", "b"], [0, 10])
    assert (bars[0].height, bars[1].y) == (0, TOP)
    assert bars[1].height == HEIGHT - BOTTOM - TOP
    assert ticks[-1].label == "10"
    assert histogram(["a"], [0])[0][0].height == 0
    assert histogram(["a"], [7])[0][0].y > TOP  # below the mark of 8


def test_a_strip_ends_behind_its_limit_and_its_interval():
    strip = span(0.02, 0.01, 0.04, 0.10)
    assert (strip.value, strip.low, strip.high, strip.limit, strip.end) == (20, 10, 40, 100, "10 %")
    assert span(0.9, 0.8, 0.97, None).end == "100 %"


@pytest.mark.parametrize(
    ("low", "high", "marks"), [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1])]
)
def test_marks_are_round_numbers_around_an_interval(low, high, marks):
    assert nice(low, high) == pytest.approx(marks)


def test_marks_of_steps_are_integers_inside_the_interval():
    assert nice(1, 250, whole=True, inside=True) == [50, 100, 150, 200, 250]
    assert nice(1, 2, whole=True, inside=True) == [1, 2]
