"""Copies of weights: taken, stored with a checkpoint, and read back."""

from collections.abc import Mapping, Sequence

from torch import Tensor


def snapshot(params: Sequence[Tensor]) -> list[Tensor]:
    """Copies of the weights as they are now, without graph."""
    return [p.detach().clone() for p in params]


def snapshot_state(tensors: Sequence[Tensor], name: str) -> dict[str, Tensor]:
    """The tensors as a checkpoint stores them: ``name.0``, ``name.1``, ... in their order."""
    return {f"{name}.{i}": tensor for i, tensor in enumerate(tensors)}


def from_state(state: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """The tensors that ``snapshot_state`` stored under this name; none where it stored none."""
    return [state[f"{name}.{i}"] for i in range(sum(key.startswith(f"{name}.") for key in state))]
