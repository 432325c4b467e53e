"""Means over the neighbours of a token."""

import torch
from torch import Tensor


def smoothed(values: Tensor, radius: int) -> Tensor:
    """Mean over each place and up to ``radius`` on either side; at the ends there are fewer.

    Args:
        values: [N, ...], along one answer.
        radius: 0 leaves the values as they are.
    """
    if radius == 0 or not len(values):
        return values
    place = torch.arange(len(values), device=values.device)
    low, high = (place - radius).clamp(min=0), (place + radius + 1).clamp(max=len(values))
    sums = torch.cat([torch.zeros_like(values[:1]), values]).cumsum(dim=0)
    width = (high - low).to(values.dtype).view(-1, *[1] * (values.dim() - 1))
    return (sums[high] - sums[low]) / width
