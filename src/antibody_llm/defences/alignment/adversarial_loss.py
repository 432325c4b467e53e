"""Adversarial loss: refusals learnt while the loss of harmful completions is pushed up.

    min_w  f(w) + lam * A(h(w)),    A(h) = -log(1 + h)   "neglog1p"
                                           -log h        "neglog"
                                           -h            "neg", while h <= cap

    update = g_f + lam * A'(h) * g_h,    A' = -1 / (1 + h),  -1 / h,  -1

    f   alignment loss: prompts with their own completion (refusals, and benign rows)      [nats per token]
    h   harmful loss: harmful prompts with harmful completions                             [nats per token]

This is the plain immuniser that the others are measured against. Two forward and two backward passes.

Reference: D. Rosati, J. Wehner, K. Williams, L. Bartoszcze, J. Batzner, H. Sajjad, F. Rudzicz, "Immunization against
harmful fine-tuning attacks", Findings of EMNLP 2024, https://arxiv.org/abs/2402.16382. There is no released code, and
we found no formula for its adversarial loss: the forms are ours, "neglog1p" the one-layer case of RepNoise's ascent
term. "neg" has no lower bound, so that it is dropped once h is above ``cap``. A belongs to the mean over the optimiser
step.
"""

import math
from dataclasses import dataclass
from typing import Literal

from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...likelihood.completion import bare
from ...primitives.gradients import combined
from ...training.defence import About, Defence
from ...training.step import Batches, StepContext, StepResult

Form = Literal["neglog1p", "neglog", "neg"]


@dataclass(frozen=True, kw_only=True)
class AdversarialLossConfig:
    """Hyperparameters."""

    lam: float = 1.0
    """Weight of the harmful term; 0 is plain SFT. The paper's text does not state it as far as we could read; 0.1 in
    the nearest released code (Booster's comparison, form "neglog")."""
    form: Form = "neglog1p"
    """The form of A. Its pull is bounded at any h ("neglog1p"), grows without bound as h nears 0 ("neglog"), or is
    constant ("neg")."""
    cap: float | None = None
    """Harmful loss, in nats per token, above which the harmful term is dropped. None: for "neg" the log of the
    vocabulary's size, where the completion is no likelier than chance; for the others no cap."""

    def __post_init__(self) -> None:
        if not 0 <= self.lam < math.inf:
            raise ConfigError(f"adversarial-loss.lam is {self.lam}: must be a finite number, 0 or more.")
        if self.cap is not None and not 0 < self.cap < math.inf:
            raise ConfigError(f"adversarial-loss.cap is {self.cap}: must be a finite loss above 0, or none.")


def adversarial_slope(h: float, *, form: Form, cap: float) -> float:
    """A'(h), the factor of the harmful gradient; 0 above ``cap``."""
    if h > cap:
        return 0.0
    return {"neglog1p": -1 / (1 + h), "neglog": -1 / max(h, 1e-12), "neg": -1.0}[form]


class AdversarialLoss(Defence):
    """Defence that binds the update to the batches of an optimiser step."""

    stage = Stage.ALIGNMENT
    about = About(
        summary="refuse, and push the loss of harmful completions up",
        paper="2402.16382",
        forwards=2,
        backwards=2,
        extra_memory="2 gradients of the trainable weights",
    )
    options = AdversarialLossConfig
    config: AdversarialLossConfig
    batches = (Role.HARMFUL,)
    neutral = {"lam": 0.0}

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, as in the head of this file."""
        alignment = context.gradient("token_mean_nll", batches[Role.ALIGNMENT])
        harmful = context.gradient("token_mean_nll", batches[Role.HARMFUL])
        slope = adversarial_slope(harmful.loss, form=self.config.form, cap=self._cap(context))
        update = combined(alignment.gradients, (self.config.lam * slope, harmful.gradients))
        return StepResult(update, alignment.loss, {"loss_harmful": harmful.loss, "harmful_weight": slope})

    def _cap(self, context: StepContext) -> float:
        if self.config.cap is not None:
            return self.config.cap
        if self.config.form != "neg":
            return math.inf
        return math.log(bare(context.model).get_output_embeddings().weight.shape[0])  # type: ignore[operator]
