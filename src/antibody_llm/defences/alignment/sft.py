"""Plain safety alignment: supervised fine-tuning on prompts with refusals (and benign rows).

    min_w  sum_i NLL_i / sum_i N_i        over the rows of an optimiser step; N_i completion tokens, EOS included

The baseline of every alignment-stage paper. One forward, one backward.
"""

from collections.abc import Mapping

from ...data.roles import Role, Stage
from ...likelihood.microbatch import StepBatch
from ...training.defence import About, Defence, NoOptions, plain_step
from ...training.step import StepContext, StepResult


class AlignmentSFT(Defence):
    """Refusals, learnt plainly."""

    stage = Stage.ALIGNMENT
    about = About(summary="refusals learnt plainly", paper="", forwards=1, backwards=1, extra_memory="none")
    neutral = {}

    def __init__(self, config: NoOptions) -> None:
        self.config = config

    def step(self, context: StepContext, batches: Mapping[str, StepBatch]) -> StepResult:
        """The gradient of the token mean."""
        return plain_step(context, batches, Role.ALIGNMENT)
