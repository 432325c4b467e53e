"""Geometry of the console's pictures: numbers in, coordinates of an SVG out. Templates draw what is returned here.

A picture is 360 wide, so that its text can be read on a telephone. Every one stands beside a table of its numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360.0, 190.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 12.0, 30.0
MAX_POINTS = 240
"""Points of a line; more are thinned out, and first, last, lowest and highest stay."""


@dataclass(frozen=True)
class Tick:
    """A mark of an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Whisker:
    """A value with its interval."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """A line."""

    path: str
    """The ``d`` of an SVG path."""
    last: tuple[float, float]
    """Where it ends."""
    whiskers: tuple[Whisker, ...] = ()


@dataclass(frozen=True)
class Chart:
    """Curves on common axes."""

    curves: tuple[Curve, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    limits: tuple[float, ...] = ()
    """Heights of lines that are not to be crossed."""


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram."""

    x: float
    y: float
    width: float
    height: float
    label: str
    count: int


Point = tuple[float, float]
Measured = tuple[float, float, float, float]
"""x, value, lower and upper end of its interval."""


def loss_chart(points: Sequence[Point]) -> Chart | None:
    """The loss over the steps, and ``smoothed``; None where there are fewer than two points."""
    known = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    points = thinned(known)
    if len(points) < 2:
        return None
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_ticks, y_ticks = nice(min(xs), max(xs), whole=True, inside=True), nice(min(0.0, *ys), max(ys))
    along, up = _scale(min(xs), max(xs), y_ticks)
    curves = tuple(_curve([(along(x), up(y)) for x, y in each]) for each in (points, thinned(smoothed(known))))
    return Chart(curves, _marks(x_ticks, along), _marks(y_ticks, up))


def share_chart(series: Sequence[Sequence[Measured]], limits: Sequence[float] = ()) -> Chart | None:
    """Shares with their intervals over the steps; None where no series has a point."""
    xs = [point[0] for points in series for point in points]
    if not xs:
        return None
    low, high = min(xs), max(xs)
    aside = 0.08 * (high - low) or 1.0  # room for the marks at both ends
    end = _end(max((*limits, *(point[3] for points in series for point in points))))
    y_ticks = [end * i / 5 for i in range(6)]
    along, up = _scale(low - aside, high + aside, y_ticks)
    curves = tuple(
        _curve(
            [(along(x), up(value)) for x, value, _, _ in points],
            tuple(Whisker(along(x), up(value), up(below), up(above)) for x, value, below, above in points),
        )
        for points in series
        if points
    )
    marks = tuple(Tick(up(at), f"{100 * at:.3g} %") for at in y_ticks)
    steps = sorted(set(xs))
    return Chart(curves, _marks(steps[:: max(1, len(steps) // 5)], along), marks, tuple(map(up, limits)))


def histogram(labels: Sequence[str], counts: Sequence[int]) -> tuple[tuple[Bar, ...], tuple[Tick, ...]]:
    """Bars that touch their neighbours with a small gap, and the marks of their height."""
    y_ticks = nice(0, max(1, *counts), whole=True)
    _, up = _scale(0, 1, y_ticks)
    width = (WIDTH - LEFT - RIGHT) / len(counts)
    floor = HEIGHT - BOTTOM
    bars = tuple(
        Bar(_at(LEFT + width * i + 1), up(count), _at(width - 2), _at(floor - up(count)), label, count)
        for i, (label, count) in enumerate(zip(labels, counts, strict=True))
    )
    return bars, _marks(y_ticks, up)


@dataclass(frozen=True)
class Span:
    """An interval and its limit on a strip that is 100 wide, from 0 to ``end``."""

    value: float
    low: float
    high: float
    limit: float | None
    end: str


def span(value: float, low: float, high: float, limit: float | None) -> Span:
    """The strip of one line of the gate's table."""
    end = _end(max(high, limit or 0.0))
    at = [None if x is None else _at(100 * min(1.0, max(0.0, x / end))) for x in (value, low, high, limit)]
    assert at[0] is not None
    assert at[1] is not None
    assert at[2] is not None
    return Span(at[0], at[1], at[2], at[3], f"{100 * end:.0f} %")


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Each point's mean with those before it, of a fifteenth of all points."""
    window = max(1, len(points) // 15)
    means = []
    for i, (x, _) in enumerate(points):
        part = points[max(0, i - window + 1) : i + 1]
        means.append((x, sum(y for _, y in part) / len(part)))
    return means


def _end(most: float) -> float:
    """Where an axis of shares ends that reaches as far as ``most``."""
    return next((end for end in (0.1, 0.2, 0.25, 0.5) if most <= end), 1.0)


def thinned(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most about ``most`` points that look the same: of each stretch the lowest and the highest, and both ends."""
    if len(points) <= most:
        return list(points)
    stretch = math.ceil(2 * len(points) / most)
    kept = {0, len(points) - 1}
    for start in range(0, len(points), stretch):
        part = range(start, min(start + stretch, len(points)))
        kept |= {min(part, key=lambda i: points[i][1]), max(part, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def nice(low: float, high: float, *, num: int = 5, whole: bool = False, inside: bool = False) -> list[float]:
    """About ``num`` round numbers around an interval, or ``inside`` it; with ``whole`` they are integers."""
    if high <= low:
        high = low + 1
    raw = (high - low) / num
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999) * power
    if whole:
        step = max(1.0, math.ceil(step))
    first = math.ceil(low / step - 1e-9) if inside else math.floor(low / step + 1e-9)
    last = math.floor(high / step + 1e-9) if inside else math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _curve(points: Sequence[Point], whiskers: tuple[Whisker, ...] = ()) -> Curve:
    return Curve("M" + " L".join(f"{x:g} {y:g}" for x, y in points), points[-1], whiskers)


def _scale(low: float, high: float, y_ticks: Sequence[float]) -> tuple["Axis", "Axis"]:
    floor, ceiling = y_ticks[0], y_ticks[-1]
    return (
        Axis(low, max(high, low + 1e-9), LEFT, WIDTH - RIGHT),
        Axis(floor, max(ceiling, floor + 1e-9), HEIGHT - BOTTOM, TOP),
    )


@dataclass(frozen=True)
class Axis:
    """Where a number lies."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The coordinate of a value."""
        return _at(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start))


def _marks(values: Sequence[float], axis: Axis) -> tuple[Tick, ...]:
    return tuple(Tick(axis(value), f"{value:,.10g}") for value in values)


def _at(value: float) -> float:
    return round(value, 1)
