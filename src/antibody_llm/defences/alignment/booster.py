"""Booster: penalise, during alignment, how much one step on harmful data would lower the harmful loss.

    min_w  f(w) + lam * [ h(w) - h(w - alpha * g_h / |g_h|) ],    g_h = grad h(w)

    update = g_f + lam * [ g_h - grad h(w - alpha * g_h / |g_h|) ]

    f   alignment loss: prompts with their own completion (refusals, and benign rows)      [nats per token]
    h   harmful loss: harmful prompts with harmful completions, the same rows twice        [nats per token]

The step's own dependence on w is dropped, as in the paper: that term is O(alpha^2) beside O(alpha). What remains is,
to first order, the gradient of f + lam * alpha * |grad h|. One norm over all trainable weights. Three forward and three
backward passes.

Reference: T. Huang, S. Hu, F. Ilhan, S. F. Tekin, L. Liu, "Booster: Tackling Harmful Fine-tuning for Large Language
Models via Attenuating Harmful Perturbation", ICLR 2025, https://arxiv.org/abs/2409.01586. Departures from the release:
the weights are restored from copies (there by adding the step back, which is not exact); norm and step belong to the
optimiser step, over its micro-batches and ranks (there to a micro-batch, and the gradients of earlier ones are lost).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...primitives.gradients import Gradients, combined
from ...primitives.secant import secant
from ...training.defence import About, Defence
from ...training.step import Batches, StepContext, StepResult


@dataclass(frozen=True, kw_only=True)
class BoosterConfig:
    """Hyperparameters. The paper's text leaves both open; defaults are those of the released scripts."""

    lam: float = 5.0
    """Weight of the penalty; 0 is plain SFT. Scripts: "lamb=5"."""
    alpha: float = 0.1
    """Length of the simulated step: L2 norm over all trainable weights, so its effect depends on the adapter's size.
    Scripts: "alpha=0.1"."""

    def __post_init__(self) -> None:
        for name in ("lam", "alpha"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ConfigError(f"booster.{name} is {value}: must be a finite number, 0 or more.")


def booster_update(
    params: Sequence[nn.Parameter],
    *,
    alignment_gradient: Callable[[], Gradients],
    harmful_gradient: Callable[[], Gradients],
    alpha: float,
    lam: float,
) -> Gradients:
    """Compute the update at the current weights. Each gradient is taken where it is called.

    Args:
        params: Trainable weights, moved for one of the three passes and restored exactly.
        alignment_gradient: grad f here.
        harmful_gradient: grad h here; called twice.
        alpha: Length of the step.
        lam: Weight of the penalty.
    """
    flattening = secant(params, harmful_gradient, -alpha).difference
    return combined(alignment_gradient(), (lam, flattening))


class Booster(Defence):
    """Defence that binds the update to the batches of an optimiser step."""

    stage = Stage.ALIGNMENT
    about = About(
        summary="refuse, and leave little for one harmful step to gain",
        paper="2409.01586",
        forwards=3,
        backwards=3,
        extra_memory="3 gradients and 1 copy of the trainable weights",
    )
    options = BoosterConfig
    config: BoosterConfig
    batches = (Role.HARMFUL,)
    twin_passes = True
    neutral = {"lam": 0.0}

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, as in the head of this file."""
        harmful_losses: list[float] = []
        alignment_losses: list[float] = []

        def gradient(role: Role, losses: list[float]) -> Gradients:
            sweep = context.gradient("token_mean_nll", batches[role])
            losses.append(sweep.loss)
            return sweep.gradients

        update = booster_update(
            context.parameters,
            alignment_gradient=lambda: gradient(Role.ALIGNMENT, alignment_losses),
            harmful_gradient=lambda: gradient(Role.HARMFUL, harmful_losses),
            alpha=self.config.alpha,
            lam=self.config.lam,
        )
        before, after = harmful_losses
        return StepResult(update, alignment_losses[0], {"loss_harmful": before, "drop": before - after})
