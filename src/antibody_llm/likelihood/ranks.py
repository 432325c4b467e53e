"""The processes of one run, and the sums over them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import AntibodyError

T = TypeVar("T")

_alone = False


def num_ranks() -> int:
    """The number of processes in this run; 1 without torch.distributed, and inside ``alone``."""
    return 1 if _alone or not (dist.is_available() and dist.is_initialized()) else dist.get_world_size()


@contextmanager
def alone() -> Iterator[None]:
    """Let this rank compute inside without waiting for the others."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def from_first(make: Callable[[], T]) -> T:
    """Return on every rank what rank 0 makes, or raise the user's error that it meets; only rank 0 calls ``make``."""
    if num_ranks() == 1:
        return make()
    made: list[object] = [None]
    if dist.get_rank() == 0:
        try:
            made = [make()]
        except AntibodyError as error:
            made = [error]
    dist.broadcast_object_list(made, src=0)
    if isinstance(made[0], AntibodyError):
        raise made[0]
    return made[0]  # type: ignore[return-value]


def all_reduce(tensor: Tensor, op: Literal["sum", "max"] = "sum") -> Tensor:
    """Sum or maximise a tensor over all ranks, in place, and return it; a single rank leaves it as it is."""
    if num_ranks() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MAX)
    return tensor


def all_reduce_gradients(gradients: list[Tensor]) -> list[Tensor]:
    """The sum over ranks of each gradient, in one message per dtype."""
    if num_ranks() == 1:
        return gradients
    for dtype in {g.dtype for g in gradients}:
        group = [g for g in gradients if g.dtype == dtype]
        flat = all_reduce(torch.cat([g.reshape(-1) for g in group]))
        for g, summed in zip(group, flat.split([g.numel() for g in group]), strict=True):
            g.copy_(summed.view_as(g))
    return gradients


def gather_lists(values: list[object]) -> list[object]:
    """The lists of all ranks, one after the other, in rank order."""
    if num_ranks() == 1:
        return values
    parts: list[list[object] | None] = [None] * num_ranks()
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part or []]
