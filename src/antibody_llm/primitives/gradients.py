"""Arithmetic over gradients: lists of tensors that count as one long vector.

Norms, products and cosines are taken over all tensors together, in float32 or better, never per tensor; of sharded
tensors (shards.py) over all parts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .shards import local, over_shards

Gradients = list[Tensor]


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Inner product over all tensors together; a float64 scalar.

    Each tensor's share is summed in float32, the shares in float64, so that the order of tensors does not show.
    """
    parts = ((local(x.detach()).float(), local(y.detach()).float()) for x, y in zip(a, b, strict=True))
    return over_shards(torch.stack([(x * y).sum().double() for x, y in parts]).sum(), a[0])


def norm(a: Sequence[Tensor]) -> Tensor:
    """One L2 norm over all tensors together; a float64 scalar."""
    return dot(a, a).sqrt()


def scaled(a: Sequence[Tensor], factor: float | Tensor) -> Gradients:
    """``factor * a``, each tensor in its own dtype."""
    return [(x * factor).to(x.dtype) for x in a]


def unit(a: Sequence[Tensor], eps: float = 1e-7) -> Gradients:
    """``a / (|a| + eps)``: a zero gradient stays zero. The guard is the one of the released codes."""
    return scaled(a, 1.0 / (norm(a) + eps))


def difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> Gradients:
    """``a - b``."""
    return [x - y for x, y in zip(a, b, strict=True)]


def combined(first: Sequence[Tensor], *rest: tuple[float | Tensor, Sequence[Tensor]]) -> Gradients:
    """``first + sum of factor * gradient``; a factor of exactly 0 leaves ``first`` bit for bit."""
    total = [x.clone() for x in first]
    for factor, gradient in rest:
        if float(factor) == 0.0:
            continue
        for x, y in zip(total, gradient, strict=True):
            x.add_((y * factor).to(x.dtype))
    return total
