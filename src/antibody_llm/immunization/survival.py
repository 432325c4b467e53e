"""Steps to a threshold, of which some are only known to be beyond the last checkpoint.

    T*(phi)    first checkpoint t with f(t) > phi; censored at T where there is none
    S(t)       prod over t_i <= t of 1 - d_i / n_i: Kaplan and Meier's share of runs that still hold after t steps,
               d_i broken at t_i of the n_i that held until then
    ratio      T* of the defended model over T* of the other, same attack and seed; between two bounds where censored
    median     of numbers known between bounds: between the median of the lower and the median of the upper bounds

The interval of a median is that of 2.5 to 97.5 % of medians over seeds drawn with replacement within each setting of
the grid, since settings are chosen and seeds are chance.

Reference: E. L. Kaplan and P. Meier, "Nonparametric estimation from incomplete observations", JASA 53 (1958).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, log
from statistics import median as middle

RESAMPLES = 1000


@dataclass(frozen=True)
class Broken:
    """When a run crossed a threshold."""

    step: int
    """The first checkpoint above it, or the last one at all."""
    censored: bool
    """Whether the run still held at ``step``."""

    @property
    def between(self) -> "Between":
        """The steps, known or beyond the last checkpoint."""
        return Between(self.step, inf if self.censored else self.step)


@dataclass(frozen=True)
class Between:
    """A number that is known to be between two others, both included; infinite where there is no bound."""

    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return number(self.low)
        if self.high == inf:
            return "unknown" if self.low == -inf else f">= {number(self.low)}"
        return f"<= {number(self.high)}" if self.low == -inf else f"{number(self.low)} to {number(self.high)}"


def number(value: float) -> str:
    """A number with three digits, without an exponent."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def broken(curve: Sequence[tuple[int, float]], phi: float) -> Broken:
    """T*(phi) of a curve [(step, f), ...] in the order of its steps, at least one."""
    first = next((step for step, f in curve if f > phi), None)
    return Broken(curve[-1][0], censored=True) if first is None else Broken(first, censored=False)


def survival(times: Sequence[Broken]) -> list[tuple[int, float]]:
    """S(t) as [(step, share), ...] from (0, 1), a pair for each step at which a run was broken."""
    found, share = [(0, 1.0)], 1.0
    for step in sorted({time.step for time in times if not time.censored}):
        held = sum(time.step >= step for time in times)  # one that is censored at this step was seen to hold until it
        share *= 1 - sum(time.step == step and not time.censored for time in times) / held
        found.append((step, share))
    return found


def ratio(defended: Broken, model: Broken) -> Between:
    """T* of the defended model over that of the other."""
    low = -inf if model.censored else defended.step / model.step
    high = inf if defended.censored else defended.step / model.step
    return Between(low, high)


def difference(first: Broken, second: Broken) -> Between:
    """The steps by which the first outlasts the second."""
    low = -inf if second.censored else first.step - second.step
    high = inf if first.censored else first.step - second.step
    return Between(low, high)


def median(values: Sequence[Between]) -> Between:
    """The bounds of the median of numbers that are known between bounds."""
    return Between(middle(value.low for value in values), middle(value.high for value in values))


def interval(settings: Sequence[Sequence[Between]], *, resamples: int = RESAMPLES) -> Between:
    """The 95 % interval of the median over all runs.

    Args:
        settings: For each setting of the grid the values of its seeds.
        resamples: How often seeds are drawn.
    """
    rng = random.Random("immunization/interval")
    drawn = [median([v for seeds in settings for v in rng.choices(seeds, k=len(seeds))]) for _ in range(resamples)]
    lows, highs = sorted(each.low for each in drawn), sorted(each.high for each in drawn)
    return Between(lows[int(0.025 * resamples)], highs[min(resamples - 1, int(0.975 * resamples))])


def area(curve: Sequence[tuple[int, float]]) -> float:
    """The mean of f over log t from the first step above 0 to the last, by trapezoids."""
    points = [(log(step), f) for step, f in curve if step > 0]
    if len(points) == 1:
        return points[0][1]
    total = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))
    return total / (points[-1][0] - points[0][0])
