"""What ends a run from outside, in words that a user can act on: too little memory, and a process that is gone."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from ..errors import AntibodyError, OutOfMemory, TrainingError
from ..likelihood.ranks import num_ranks
from ..likelihood.refusals import checkpointed
from ..mentions import setting
from ..text import counted
from .checkpoints import newest_checkpoint

if TYPE_CHECKING:
    from .trainer import StepTrainer

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_NO_PEER = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


@contextmanager
def explained(trainer: "StepTrainer") -> Iterator[None]:
    """Inside, what the machine ends becomes an error that says what to change.

    Raises:
        OutOfMemory: a pass did not fit the memory.
        TrainingError: another process of the run is gone.
    """
    try:
        with _ended_by_the_launcher(trainer):
            yield
    except AntibodyError:
        raise
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or _has(error, _NO_MEMORY):
            raise OutOfMemory(_too_much(trainer)) from error
        if num_ranks() > 1 and (isinstance(error, dist.DistError) or _has(error, _NO_PEER)):
            raise TrainingError(_lost(trainer)) from error
        raise


@contextmanager
def _ended_by_the_launcher(trainer: "StepTrainer") -> Iterator[None]:
    """Inside, SIGTERM is an error: torchrun sends it to the others once a process has ended, before they notice."""
    here = threading.current_thread() is threading.main_thread()
    if num_ranks() == 1 or not here or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise TrainingError(_lost(trainer))

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _has(error: BaseException, signs: Sequence[str]) -> bool:
    return any(sign in str(error) for sign in signs)


def _too_much(trainer: "StepTrainer") -> str:
    """What did not fit, and what makes it smaller, the cheapest first."""
    grid, longest = trainer.grid, max(map(trainer.num_tokens, range(len(trainer._main_rows))))
    size, passes = grid.micro_batch_size, grid.accumulation
    on = checkpointed(trainer.context.model)
    ways = [] if on else [f"set {setting('training.gradient_checkpointing', 'True')}"]
    if size > 1:
        ways.append(
            f"halve {setting('batch_size')} and double {setting('training.gradient_accumulation_steps')}, now {passes}"
            ", for the same steps"
        )
    ways.append(f"lower {setting('training.max_length')}")
    return (
        f"step {trainer.state.global_step + 1} does not fit the memory: {counted(size, 'row')} in a forward pass, the "
        f"longest of {longest} tokens, gradient checkpointing {'on' if on else 'off'}. In this order: "
        f"{'; '.join(ways)}. docs/scale.md says what fits where."
    )


def _lost(trainer: "StepTrainer") -> str:
    """Which step it was, and where the run goes on."""
    newest = newest_checkpoint(Path(str(trainer.args.output_dir)))
    where = f"from {newest.name}" if newest else "from the beginning, since there is no checkpoint"
    return (
        f"step {trainer.state.global_step + 1}: another process of this run has ended or cannot be reached, and this "
        "one ends too. See what that one said last; one that said nothing was killed, most often for its memory. Start "
        f"all {num_ranks()} processes again with the same command: it goes on {where}."
    )
