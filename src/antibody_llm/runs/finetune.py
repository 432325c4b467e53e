"""Fine-tune a model on a user's upload, under a defence."""

from collections.abc import Sequence

from transformers import TrainerCallback

from ..settings import FinetuneSettings
from ..store.result import RunResult
from .train import train
from .verb import verb


@verb(FinetuneSettings)
def finetune(settings: FinetuneSettings, *, callbacks: Sequence[TrainerCallback] = ()) -> RunResult:
    """Fine-tune a model on a user's upload.

    Args:
        settings: What to train, on what, and how.
        callbacks: Further callbacks for the Trainer.

    Raises:
        AntibodyError: whatever a user can fix; until training begins nothing has been written.
    """
    return train(settings, callbacks=tuple(callbacks))
