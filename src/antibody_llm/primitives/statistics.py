"""Statistics of scores."""

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
