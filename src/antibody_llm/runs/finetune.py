"""Fine-tune a model on a user's upload, under a defence."""

from collections.abc import Sequence

from transformers import TrainerCallback

from ..settings import FinetuneSettings
from ..store.result import RunResult
from .train import train
from .verb import verb


@verb(FinetuneSettings)
def finetune(
    settings: FinetuneSettings, *, progress: bool = False, callbacks: Sequence[TrainerCallback] = ()
) -> RunResult:
    """Fine-tune a model on a user's upload.

    Args:
        settings: What to train, on what, and how.
        progress: Show a bar on stderr, if that is a terminal.
        callbacks: Further callbacks for the Trainer.

    Raises:
        AntibodyError: whatever a user can fix; until training begins nothing has been written.
    """
    return train(settings, progress=progress, callbacks=tuple(callbacks))
