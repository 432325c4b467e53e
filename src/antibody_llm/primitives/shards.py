"""Weights that are shared out among ranks: FSDP2's DTensors, of which every rank holds a part.

Elementwise arithmetic works on the parts and needs nothing of this file. Whatever looks at all elements of a tensor
(a norm, a largest element) or makes a new one of its shape goes through here, where a plain tensor stays bit for bit
what it is.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, distribute_tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds only a part of the tensor."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """This rank's part, in the same memory; all of a plain tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor on every rank. All ranks must call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def over_shards(value: Tensor, like: Tensor, op: Literal["sum", "max"] = "sum") -> Tensor:
    """Reduce a number that each rank has computed from its part of ``like``; unchanged if ``like`` is plain."""
    if not isinstance(like, DTensor):
        return value
    placements: Sequence[Placement] = [Replicate() if p.is_replicate() else Partial(op) for p in like.placements]
    return DTensor.from_local(value, like.device_mesh, placements, run_check=False).full_tensor()


def largest(tensor: Tensor) -> Tensor:
    """The largest absolute value of the whole tensor; 0 for one without elements."""
    part = local(tensor).abs()
    return over_shards(part.max() if part.numel() else part.new_zeros(()), tensor, "max")


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that every rank has whole, laid out as ``like``; without communication."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether every element is finite, on every rank."""
    if not tensors:
        return True
    flags = [torch.isfinite(local(t)).all() for t in tensors]
    bad = torch.stack([(~flag).float() for flag in flags]).max()
    return not bool(over_shards(bad, tensors[0], "max"))
