"""Plain supervised fine-tuning on the upload: the undefended control.

    min_w  sum_i NLL_i / sum_i N_i        over the rows of an optimiser step; N_i completion tokens, EOS included

The mean over tokens, as in Hugging Face's Trainer. One forward, one backward.
"""

from collections.abc import Mapping

from ...data.roles import Role, Stage
from ...likelihood.microbatch import StepBatch
from ...training.defence import About, Defence, NoOptions, plain_step
from ...training.step import StepContext, StepResult


class FinetuningSFT(Defence):
    """No defence."""

    stage = Stage.FINETUNING
    about = About(summary="undefended baseline", paper="", forwards=1, backwards=1, extra_memory="none")
    neutral = {}

    def __init__(self, config: NoOptions) -> None:
        self.config = config

    def step(self, context: StepContext, batches: Mapping[str, StepBatch]) -> StepResult:
        """The gradient of the token mean."""
        return plain_step(context, batches, Role.USER)
