"""Align a model before any user arrives, under a defence."""

from collections.abc import Sequence

from transformers import TrainerCallback

from ..settings import AlignSettings
from ..store.result import RunResult
from .train import train
from .verb import verb


@verb(AlignSettings)
def align(settings: AlignSettings, *, progress: bool = False, callbacks: Sequence[TrainerCallback] = ()) -> RunResult:
    """Teach a model to refuse, and to go on refusing after it has been fine-tuned.

    Args:
        settings: What to align, on what, and how.
        progress: Show a bar on stderr, if that is a terminal.
        callbacks: Further callbacks for the Trainer.

    Raises:
        AntibodyError: whatever a user can fix; until training begins nothing has been written.
    """
    return train(settings, progress=progress, callbacks=tuple(callbacks))
