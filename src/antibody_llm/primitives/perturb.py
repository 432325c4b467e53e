"""Weights that are moved for a moment and put back exactly."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def perturbed_weights(params: Sequence[nn.Parameter], delta: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the weights are ``w + delta``; afterwards bitwise ``w``, also when the body raises.

    They are restored from copies: adding the step back is not exact, in bf16 it moves a share of the weights for good.
    Run forward *and* backward inside, since gradient checkpointing reads the weights again in the backward pass.
    """
    with _restored(params):
        for p, d in zip(params, delta, strict=True):
            p.detach().add_(d.to(p.dtype))
        yield


@contextmanager
def replaced_weights(params: Sequence[nn.Parameter], values: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the weights are bitwise ``values`` (of the same dtype); afterwards bitwise what they were."""
    with _restored(params):
        for p, value in zip(params, values, strict=True):
            p.detach().copy_(value)
        yield


@contextmanager
def _restored(params: Sequence[nn.Parameter]) -> Iterator[None]:
    copies = [p.detach().clone() for p in params]
    try:
        yield
    finally:
        with torch.no_grad():
            for p, copy in zip(params, copies, strict=True):
                p.copy_(copy)
