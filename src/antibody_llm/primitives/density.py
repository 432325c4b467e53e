"""Densities of scores by Gaussian kernels.

Source: B. Silverman, "Density Estimation for Statistics and Data Analysis", 1986; the width is eq. (3.31).
"""

import math

import torch
from torch import Tensor


def kernel_width(scores: Tensor) -> float:
    """Silverman's width for scores [n], n >= 2; 1 where all are the same."""
    low, high = torch.quantile(scores, torch.tensor([0.25, 0.75], dtype=scores.dtype))
    deviation = float(scores.std())
    spread = min(deviation, float(high - low) / 1.34) or deviation or 1.0
    return float(0.9 * spread * len(scores) ** -0.2)


def log_density(scores: Tensor, where: Tensor, width: float) -> Tensor:
    """The log-density of scores [n] at ``where`` [m], nats."""
    z = (where[:, None] - scores) / width
    return torch.logsumexp(-z.square() / 2, dim=1) - math.log(len(scores) * width * math.sqrt(2 * math.pi))


def kernel_counts(scores: Tensor, where: Tensor, width: float) -> Tensor:
    """How many of the scores [n] lie at ``where`` [m], one exactly there counting as 1: [m]."""
    z = (where[:, None] - scores) / width
    return torch.exp(-z.square() / 2).sum(dim=1)


def density(scores: Tensor, where: Tensor) -> Tensor:
    """The density of scores [n], n >= 2, at ``where`` [m]: kernels of Silverman's width."""
    return log_density(scores, where, kernel_width(scores)).exp()


def interpolated(grid: Tensor, values: Tensor, where: Tensor) -> Tensor:
    """Linear interpolation between the points of an even grid: [..., m] at ``where`` [m] within the grid.

    Args:
        grid: [g], even, at least two points.
        values: [..., g].
        where: [m], none outside the grid.
    """
    place = (where - grid[0]) / (grid[-1] - grid[0]) * (len(grid) - 1)
    left = place.long().clamp(0, len(grid) - 2)
    part = place - left
    return values[..., left] * (1 - part) + values[..., left + 1] * part
