"""Statistics of scores and of shares."""

from math import exp, lgamma, log

import torch
from torch import Tensor


def auroc(low: Tensor, high: Tensor) -> float:
    """The chance that one drawn from ``high`` is above one drawn from ``low``; ties count half."""
    if not len(low) or not len(high):
        raise ValueError("AUROC over nothing")
    ranks = torch.cat([low, high]).double()
    order = ranks.unique(return_inverse=True, return_counts=True)
    ends = order[2].cumsum(0)
    middle = ends.double() - (order[2].double() - 1) / 2  # mean rank of equal values
    of_high = middle[order[1][len(low) :]].sum()
    return float((of_high - len(high) * (len(high) + 1) / 2) / (len(low) * len(high)))


def clopper_pearson(hits: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share: those shares of ``n`` at which neither tail is below (1 - level) / 2.

    Source: C. J. Clopper, E. S. Pearson, Biometrika 26 (1934). Unlike Wilson's it never covers less than ``level``,
    which counts where a share is near 0 and n is small.
    """
    if not 0 <= hits <= n or n < 1:
        raise ValueError(f"{hits} of {n} is no share")
    tail = (1 - level) / 2

    def at_least(k: int, p: float) -> float:
        # In logarithms: the binomial coefficients of a thousand jobs are no floats.
        ways = (lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1) for i in range(k, n + 1))
        return sum(exp(way + i * log(p) + (n - i) * log(1 - p)) for i, way in enumerate(ways, start=k))

    def where(wanted: float, k: int) -> float:
        """The p at which P(X >= k) is ``wanted``: it grows with p."""
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if at_least(k, middle) < wanted else (low, middle)
        return (low + high) / 2

    return (where(tail, hits) if hits else 0.0), (where(1 - tail, hits + 1) if hits < n else 1.0)
