"""Checkpoints that are either whole or absent.

The Trainer writes into a staging folder, the defence's tensors are added, and everything is flushed to disk. Then one
rename makes it a checkpoint, and only then are older ones removed. A run that is killed at any moment, or whose disk is
full, keeps its previous checkpoint.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch import distributed as dist

from ..errors import OutputError, TrainingError
from ..events import recall, warned
from ..files import flush, from_the_disk, reason
from .sharded_state import parts_of, write_parts

if TYPE_CHECKING:
    from .trainer import StepTrainer

STATE_FILE = "antibody_state.pt"
STAGING = ".staging"
_UNLOGGED, _UNLOGGED_LOSS, _LAST_LOGGED, _WARNINGS = "unlogged", "unlogged_loss", "last_logged", "warnings"


def save_checkpoint(trainer: "StepTrainer", state: Mapping[str, Tensor], write: Callable[[], None]) -> None:
    """Write a checkpoint whole or not at all: stage, flush, rename, remove the oldest.

    Args:
        trainer: The trainer; its ``args.output_dir`` is the checkpoints' folder.
        state: The defence's tensors and the row log.
        write: A function that writes the Trainer's own checkpoint below ``trainer.args.output_dir``.

    Raises:
        OutputError: the disk is full, or the folder cannot be written; what was there before is untouched.
    """
    folder = Path(str(trainer.args.output_dir))
    staging = folder / STAGING
    name = f"checkpoint-{trainer.state.global_step}"
    main = trainer.args.should_save
    if main:
        shutil.rmtree(staging, ignore_errors=True)
    _barrier()
    trainer.args.output_dir = str(staging)
    try:
        write()
        _barrier()
        write_parts(staging / name, state)
        if main:
            parts = parts_of(state)
            torch.save({key: tensor for key, tensor in state.items() if key not in parts}, staging / name / STATE_FILE)
            flush(*(staging / name).rglob("*"), staging / name)
            shutil.rmtree(folder / name, ignore_errors=True)
            os.replace(staging / name, folder / name)
            _rotate(folder, trainer.args.save_total_limit)
    except Exception as error:
        if not from_the_disk(error):
            raise
        previous = newest_checkpoint(folder)
        kept = f"the previous checkpoint, {previous.name}, is whole" if previous else "there was none before"
        how = "it continues from there" if previous else "it starts from the beginning"
        raise OutputError(
            f"{folder / name}: the checkpoint could not be written ({reason(error)}); {kept}. "
            f"Free some space and run the same command again: {how}."
        ) from error
    finally:
        if main:  # a partial checkpoint would keep the disk full
            shutil.rmtree(staging, ignore_errors=True)
        trainer.args.output_dir = str(folder)
    _barrier()


def unlogged(trainer: "StepTrainer") -> dict[str, Tensor]:
    """The figures gathered since the last logged step, which the Trainer keeps in memory alone."""
    last = torch.tensor(trainer._globalstep_last_logged)
    gathered = {f"{_UNLOGGED}.{name}": torch.tensor(v, dtype=torch.float64) for name, v in _metrics(trainer).items()}
    return {_UNLOGGED_LOSS: trainer._tr_loss.cpu(), _LAST_LOGGED: last} | gathered


def restore_unlogged(trainer: "StepTrainer", state: Mapping[str, Tensor]) -> None:
    """Restore what ``unlogged`` returned; checkpoints of earlier releases have none."""
    if _UNLOGGED_LOSS not in state:
        return
    trainer._tr_loss = state[_UNLOGGED_LOSS].to(trainer.args.device)
    trainer._globalstep_last_logged = int(state[_LAST_LOGGED])
    for name, values in state.items():
        if name.startswith(f"{_UNLOGGED}."):
            _metrics(trainer)[name.removeprefix(f"{_UNLOGGED}.")] = values.tolist()


def warnings_state() -> dict[str, Tensor]:
    """The warnings of the run so far, as a tensor that a checkpoint can hold."""
    return {_WARNINGS: torch.tensor(list(json.dumps(warned()).encode()), dtype=torch.uint8)}


def recall_warnings(state: Mapping[str, Tensor]) -> None:
    """Add the warnings of an earlier part of the run to those of this one."""
    if _WARNINGS in state:
        recall(json.loads(bytes(state[_WARNINGS].tolist())))


def _metrics(trainer: "StepTrainer") -> dict[str, list[float]]:
    gathered: dict[str, list[float]] = trainer._metrics["train"]
    return gathered


def newest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint with the highest step, or None."""
    whole = [path for path in folder.glob("checkpoint-*") if (path / STATE_FILE).is_file()]
    return max(whole, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)


def load_run_state(checkpoint: Path) -> dict[str, Tensor]:
    """The defence's tensors and the row log of a checkpoint, on the CPU, wherever they were when it was written.

    Raises:
        TrainingError: this folder is not a whole checkpoint of ours.
    """
    file = checkpoint / STATE_FILE
    if not file.is_file():
        raise TrainingError(
            f"{checkpoint}: not a whole checkpoint of this library ({STATE_FILE} is missing). Start the run again."
        )
    state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return state


def _rotate(folder: Path, limit: int | None) -> None:
    if not limit:
        return
    whole = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))
    for path in whole[:-limit]:
        shutil.rmtree(path, ignore_errors=True)


def _barrier() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
