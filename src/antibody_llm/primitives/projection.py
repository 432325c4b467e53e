"""The nearest point of a set around a centre: box, ball, and a ball of the spectral norm for each matrix.

All three are convex, so that projecting is idempotent and brings no two points farther apart (in the L2 norm over all
tensors together). All are computed in float32 and returned in the dtype of the weights.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .gradients import difference, norm
from .shards import largest

Region = Literal["box", "l2", "spectral"]


@torch.no_grad()
def projected(weights: Sequence[Tensor], centre: Sequence[Tensor], radius: float, region: Region) -> list[Tensor]:
    """The point of the region that is nearest to the weights.

    Args:
        weights: The point.
        centre: Centre of the region, tensor by tensor.
        radius: Bound on each weight ("box"), on all weights as one vector ("l2"), or on each tensor: largest singular
            value of a matrix, L2 norm of anything else ("spectral"). Infinity gives the weights themselves.
        region: Its shape.
    """
    if radius == float("inf"):
        return [w.clone() for w in weights]
    if region == "box":
        return [torch.clamp(w, c - radius, c + radius) for w, c in zip(weights, centre, strict=True)]
    moves = difference([w.float() for w in weights], [c.float() for c in centre])
    if region == "l2":
        length = float(norm(moves))
        if length <= radius:
            return [w.clone() for w in weights]
        moves = [m * (radius / length) for m in moves]
    else:
        moves = [_spectral(m, radius) for m in moves]
    return [(c.float() + m).to(w.dtype) for w, c, m in zip(weights, centre, moves, strict=True)]


def _spectral(move: Tensor, radius: float) -> Tensor:
    """``move`` with its singular values cut at ``radius``."""
    if move.ndim != 2:
        return move * min(1.0, radius / max(float(move.norm()), 1e-30))
    u, s, vh = torch.linalg.svd(move, full_matrices=False)
    return (u * s.clamp(max=radius)) @ vh if float(s[0]) > radius else move


def extent(weights: Sequence[Tensor], centre: Sequence[Tensor], region: Region) -> float:
    """The smallest radius whose region holds the weights."""
    moves = difference([w.detach().float() for w in weights], [c.float() for c in centre])
    if region == "l2":
        return float(norm(moves))
    if region == "box":
        return max(float(largest(m)) for m in moves)
    return max(float(torch.linalg.matrix_norm(m, 2) if m.ndim == 2 else m.norm()) for m in moves)
