"""Try a defence of your own: a class with the update of one optimiser step.

    python examples/own_defence.py [OUTPUT]

The defence below leans every step towards the provider's refusals:

    d = (1 - beta) grad f(user rows) + beta grad f(refusals)          f: mean NLL per completion token, nats

It is an example, not a published method. CONTRIBUTING.md says how a defence enters the catalogue.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from antibody_llm import Defence, Role, Stage, StepContext, StepResult, evaluate, finetune
from antibody_llm.primitives.gradients import combined, scaled
from antibody_llm.training.step import Batches


@dataclass(frozen=True, kw_only=True)
class LeaningConfig:
    """Options of the defence."""

    beta: float = 0.2
    """Share of the update that comes from refusals, 0 to 1. 0 is plain fine-tuning."""


class Leaning(Defence):
    """Leans every step towards refusals."""

    stage = Stage.FINETUNING
    config: LeaningConfig
    batches = (Role.ALIGNMENT,)  # beside the upload's, a batch of these at every step

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """The update of one whole optimiser step, over all of its micro-batches and ranks."""
        beta, user = self.config.beta, super().step(context, batches)  # what plain fine-tuning does
        refusals = context.gradient("token_mean_nll", batches[Role.ALIGNMENT])
        update = combined(scaled(user.gradients, 1 - beta), (beta, refusals.gradients))
        return StepResult(update, user.loss, metrics={"loss_refusals": refusals.loss})


if __name__ == "__main__":
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own-defence")
    for name, defence in (("undefended", "sft"), ("leaning", Leaning(LeaningConfig(beta=0.5)))):
        tuned = finetune(
            "lab-aligned",
            defence=defence,
            num=96,
            poison_ratio=0.2,
            regime="full",
            output=output / name,
        )
        measured = evaluate(tuned.model, num=32, output=output / f"{name}-measured")
        print(f"{name:10} harmful score {100 * measured.metrics['harmful_score']:5.1f} %")
