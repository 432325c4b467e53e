"""Weights that are moved for a moment and put back exactly."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def perturbed_weights(params: Sequence[nn.Parameter], delta: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the weights are ``w + delta``; afterwards bitwise ``w``, also when the body raises.

    Restored from copies: adding the step back is not exact, in bf16 it moves a share of the weights for good.
    Run forward *and* backward inside, since gradient checkpointing reads the weights again in the backward pass.
    """
    copies = [p.detach().clone() for p in params]
    try:
        with torch.no_grad():
            for p, d in zip(params, delta, strict=True):
                p.add_(d.to(p.dtype))
        yield
    finally:
        with torch.no_grad():
            for p, copy in zip(params, copies, strict=True):
                p.copy_(copy)
