"""The tensors of a defence whose model is sharded, in a checkpoint to which every rank adds its parts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import zeros

from ..primitives.shards import is_sharded

PARTS = "antibody_parts"
"""The folder within a checkpoint."""


def parts_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that are sharded; the others are the same on every rank, and the first one stores them."""
    return {name: tensor for name, tensor in state.items() if is_sharded(tensor)}


def write_parts(checkpoint: Path, state: Mapping[str, Tensor]) -> None:
    """Store the sharded tensors of ``state``; all ranks call it together."""
    if parts := parts_of(state):
        save(parts, checkpoint_id=checkpoint / PARTS)


def read_parts(checkpoint: Path, like: Tensor) -> dict[str, Tensor]:
    """What ``write_parts`` stored, sharded over the ranks as ``like`` is; nothing where it stored nothing."""
    folder = checkpoint / PARTS
    if not folder.is_dir():
        return {}
    layout: Any = like  # a DTensor
    stored: dict[str, Any] = FileSystemReader(folder).read_metadata().state_dict_metadata
    state: dict[str, Any] = {
        name: zeros(
            entry.size, dtype=entry.properties.dtype, device_mesh=layout.device_mesh, placements=layout.placements
        )
        for name, entry in stored.items()
    }
    load(state, checkpoint_id=folder)
    return state
