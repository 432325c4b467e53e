"""SafeGrad: remove from the user's gradient what points against safety, and add some of safety's own.

    g_u' = g_u - (<g_u, g_a> / |g_a|^2) g_a     if <g_u, g_a> < 0, else g_u
    step along  g_u' + rho g_a

    g_u   gradient of the upload's token-mean NLL                                              [nats per token]
    g_a   gradient of the mean of KL(p^0 || p) over the completion tokens of the provider's rows [nats per token]
    p^0   the model before its first step, a constant;  p  the model that trains
    <.,.> over all trainable weights as one vector, and over the whole optimiser step

g_u' is the vector nearest to g_u that does not raise the KL to first order. At p = p^0 the KL has no gradient, so the
first step is plain SFT. Two gradients and a forward without one.

Reference: Biao Yi, Jiahao Li, Baolei Zhang, Lihai Nie, Tong Li, Tiansheng Huang, Zheli Liu, Gradient Surgery for Safe
LLM Fine-Tuning, ICASSP 2026, https://arxiv.org/abs/2508.07172, from its description: neither equations nor code were
seen. Ours: the default of rho, and rows of the provider as many as the user's in each step. There is no option at which
it is not plain SFT's update minus a part of it, hence none at which it is plain SFT: it is not plain SFT anywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...primitives.gradients import Gradients, combined, dot
from ...training.defence import About, Defence
from ...training.reference import Reference
from ...training.step import Batches, RowRecord, StepContext, StepResult


@dataclass(frozen=True, kw_only=True)
class SafeGradConfig:
    """Hyperparameters."""

    rho: float = 1.0
    """Weight of safety's own gradient; 0 only removes. The paper's value was not seen."""

    def __post_init__(self) -> None:
        if not (self.rho >= 0 and isfinite(self.rho)):
            raise ConfigError(f"safegrad.rho is {self.rho}: must be a finite number, 0 or more.")


def without_conflict(user: Gradients, safety: Gradients) -> tuple[Gradients, float]:
    """g_u', and the cosine of g_u and g_a; g_u itself, and 0, where either is zero."""
    product, square, length = float(dot(user, safety)), float(dot(safety, safety)), float(dot(user, user)) ** 0.5
    if square == 0 or length == 0:
        return user, 0.0
    return combined(user, (-min(product, 0.0) / square, safety)), product / (length * square**0.5)


class SafeGrad(Defence):
    """Defence that binds both gradients to the batches of an optimiser step."""

    config: SafeGradConfig
    stage = Stage.FINETUNING
    about = About(
        summary="the part of an update that would undo safety is projected away",
        paper="2508.07172",
        forwards=3,
        backwards=2,
        extra_memory="1 copy of the trainable weights, 2 gradients, the aligned model's logits of a micro-batch",
    )
    options = SafeGradConfig
    batches = (Role.ALIGNMENT,)

    def __init__(self, config: SafeGradConfig) -> None:
        self.config = config
        self.reference = Reference()  # p^0

    def start(self, context: StepContext) -> None:
        """Keep the aligned weights."""
        self.reference = Reference.of(context)

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, as in the head of this file."""
        user = context.gradient("token_mean_nll", batches[Role.USER])
        safety = context.gradient(lambda micro: self.reference.mean_divergence(context, micro), batches[Role.ALIGNMENT])
        update, cosine = without_conflict(user.gradients, safety.gradients)
        update = combined(update, (self.config.rho, safety.gradients))
        metrics = {"loss_user": user.loss, "divergence": safety.loss, "cosine": cosine}
        loss = user.loss + self.config.rho * safety.loss
        return StepResult(update, loss, metrics, RowRecord(torch.ones_like(user.weights)))

    def state(self) -> dict[str, Tensor]:
        """The aligned weights."""
        return self.reference.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self.reference = Reference.from_state(state)
