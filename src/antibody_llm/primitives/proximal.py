"""A pull back to where the weights once were.

    R(w) = rho / 2 * sum_j F_j (w_j - a_j)^2,      grad R = rho * F (w - a)

    a   the anchor: a copy of the trainable weights                     rho   strength, >= 0
    F   importance of each weight, >= 0; left out, it is 1 everywhere (L2-SP, the tether of Lisa)

The closed form is added to a gradient after the backward pass: no graph is built, and at w = a it is exactly 0 (a
norm, squared, would have no derivative there). No gradient is reduced: all ranks hold the same weights, or their
parts of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .gradients import Gradients
from .shards import local, over_shards


def proximal_pull(
    params: Sequence[Tensor], anchor: Sequence[Tensor], rho: float, importance: Sequence[Tensor] | None = None
) -> Gradients:
    """grad R at the current weights: one tensor per parameter, in its dtype."""
    pull = torch._foreach_sub([p.detach() for p in params], list(anchor))
    torch._foreach_mul_(pull, rho)
    if importance is not None:
        for d, weight in zip(pull, importance, strict=True):
            d.mul_(weight)
    return list(pull)


def proximal_penalty(
    params: Sequence[Tensor], anchor: Sequence[Tensor], rho: float, importance: Sequence[Tensor] | None = None
) -> float:
    """R at the current weights; each tensor's share is summed in float32, the shares in float64. For the record."""
    total = torch.zeros((), dtype=torch.float64, device=params[0].device)
    for i, (p, a) in enumerate(zip(params, anchor, strict=True)):
        square = (local(p.detach()).float() - local(a).float()).square()
        total += (square if importance is None else square * local(importance[i]).float()).sum()
    return rho / 2 * float(over_shards(total, params[0]))
