"""Align a model before any user arrives, under a defence."""

from collections.abc import Sequence

from transformers import TrainerCallback

from ..settings import AlignSettings
from ..store.result import RunResult
from .train import train
from .verb import verb


@verb(AlignSettings)
def align(settings: AlignSettings, *, callbacks: Sequence[TrainerCallback] = ()) -> RunResult:
    """Teach a model to refuse, and to go on refusing after it has been fine-tuned.

    Args:
        settings: What to align, on what, and how.
        callbacks: Further callbacks for the Trainer.

    Raises:
        AntibodyError: whatever a user can fix; until training begins nothing has been written.
    """
    return train(settings, callbacks=tuple(callbacks))
