"""SEAM: make harmful and benign gradients opposite, so that learning harm unlearns everything else.

    min_w  -log(1 + A(w)) + alpha * f(w) + beta * cos(g_a, g_b),    g_a = grad h(w),  g_b = grad b(w)

    d cos / dw = H_a u / n_a + H_b v / n_b,     u = g_b/n_b - c g_a/n_a,   v = g_a/n_a - c g_b/n_b,   c = cos(g_a, g_b)
               ~ [ (grad h(w + eps u) - g_a) / n_a + (grad b(w + eps v) - g_b) / n_b ] / eps

    A   harmful loss read at every depth, see training/lens.py: unlearning              [nats per token]
    f   alignment loss: prompts with their own completion                               [nats per token]
    h   harmful loss: harmful prompts with harmful completions                          [nats per token]
    b   benign loss: benign prompts with their completions                              [nats per token]
    n   norms |g_a|, |g_b| over all trainable weights; H the losses' Hessians

The unlearning term has no weight, so this is not plain SFT at any setting. Six forward and six backward passes, as in
the release.

Reference: Y. Wang, R. Zhu, T. Wang, "Self-Destructive Language Model", https://arxiv.org/abs/2505.12186. Departures
from the release: models in half precision are refused (there the weights are bf16, where a step of norm 1e-3 changes
0.01 % of the weights and the coupling term is rounding noise); all completion tokens count, and no prompt token (there
a mask of positions at which harmful and refusing ids differ, and whole benign rows); 1e-7 guards each norm. The release
clips no gradients and the trainer does, at its max_grad_norm: set that to 0 to do as the release.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...likelihood.completion import TOLERANCE, tolerance
from ...mentions import setting
from ...primitives.gradients import Gradients, combined, difference, dot, norm, scaled, unit
from ...primitives.perturb import perturbed_weights
from ...training.defence import About, Defence
from ...training.lens import lens_mean_nll
from ...training.step import Batches, StepContext, StepResult


@dataclass(frozen=True, kw_only=True)
class SeamConfig:
    """Hyperparameters. Defaults are those of the released configuration, for Llama-2-7b-chat, all weights trained."""

    alpha: float = 1.0
    """Weight of the alignment loss. Release, yaml: 1."""
    beta: float = 0.01
    """Weight of the cosine. Release, yaml: 0.01 (the dataclass there says 0.001; the yaml wins)."""
    epsilon: float = 1e-3
    """Length of the difference step along u and v, whose norms are sqrt(1 - c^2). Release: 1e-3."""

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ConfigError(f"seam.{name} is {value}: must be a finite number, 0 or more.")
        if not 0 < self.epsilon < float("inf"):
            raise ConfigError(f"seam.epsilon is {self.epsilon}: must be a finite length above 0; the paper's is 0.001.")


def cosine_gradient(
    params: Sequence[nn.Parameter],
    *,
    harmful_gradient: Callable[[], Gradients],
    benign_gradient: Callable[[], Gradients],
    epsilon: float,
) -> tuple[Gradients, Tensor]:
    """Compute (d cos(g_a, g_b) / dw, cos) by forward differences. Each gradient is taken twice, where it is called.

    Args:
        params: Trainable weights, moved for two of the four passes and restored exactly.
        harmful_gradient: grad h here.
        benign_gradient: grad b here.
        epsilon: Length of the steps.
    """
    g_a, g_b = harmful_gradient(), benign_gradient()
    n_a, n_b = norm(g_a) + 1e-7, norm(g_b) + 1e-7
    c = dot(g_a, g_b) / (n_a * n_b)

    def change(gradient: Callable[[], Gradients], here: Gradients, other: Gradients) -> Gradients:
        """Compute eps H_a u if ``here`` is g_a, or eps H_b v if it is g_b, and keep nothing else."""
        step = scaled(combined(unit(other), (-c, unit(here))), epsilon)
        with perturbed_weights(params, step):
            there = gradient()
        return difference(there, here)

    harmful_change, benign_change = change(harmful_gradient, g_a, g_b), change(benign_gradient, g_b, g_a)
    return combined(scaled(harmful_change, 1 / (epsilon * n_a)), (1 / (epsilon * n_b), benign_change)), c


class Seam(Defence):
    """Defence that binds the three terms to the batches of an optimiser step."""

    stage = Stage.ALIGNMENT
    about = About(
        summary="make learning harm destroy the model",
        paper="2505.12186",
        forwards=6,
        backwards=6,
        extra_memory="5 gradients and 1 copy of the trainable weights",
    )
    options = SeamConfig
    config: SeamConfig
    batches = (Role.HARMFUL, Role.BENIGN)
    twin_passes = True
    neutral = None

    def check(self, context: StepContext) -> None:
        """Check as every defence does, and refuse weights or passes whose rounding loses a step of ``epsilon``."""
        super().check(context)
        if tolerance(context.model) > TOLERANCE:
            raise ConfigError(
                "seam: the model computes in half precision, where a step of norm epsilon is lost in rounding and the "
                f"cosine's gradient is noise. Load it in float32 ({setting('training.bf16', 'False')})."
            )

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, as in the head of this file."""

        def gradient(role: Role) -> Gradients:
            return context.gradient("token_mean_nll", batches[role]).gradients

        unlearning = context.gradient(lambda micro: lens_mean_nll(context, micro), batches[Role.HARMFUL])
        alignment = context.gradient("token_mean_nll", batches[Role.ALIGNMENT])
        update = combined(
            scaled(unlearning.gradients, -1 / (1 + unlearning.loss)),  # of -log(1 + A)
            (self.config.alpha, alignment.gradients),
        )
        loss, loss_lens = alignment.loss, unlearning.loss
        del unlearning, alignment  # the four passes that follow need the memory of two gradients
        coupling, cosine = cosine_gradient(
            context.parameters,
            harmful_gradient=lambda: gradient(Role.HARMFUL),
            benign_gradient=lambda: gradient(Role.BENIGN),
            epsilon=self.config.epsilon,
        )
        update = combined(update, (self.config.beta, coupling))
        return StepResult(update, loss, {"loss_lens": loss_lens, "cosine": float(cosine)})
