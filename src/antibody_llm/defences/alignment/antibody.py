"""Antibody, alignment stage: learn refusals at weights where one step of an attack gains little.

    min_w  f(w) + lam_t * L_sharp(w) + lam2 * r(w_pert)                                       (Sec. 4.1)

    L_sharp(w) = h(w) - min_{|v - w| <= alpha} h(v)       how far one attack of radius alpha can lower the harmful loss
    w_pert     = w - alpha * g_h / |g_h|,  g_h = grad h(w)       the inner minimum to first order, held constant

    f   alignment loss: prompts with their own completion (refusals, and benign rows)      [nats per token]
    h   harmful loss: harmful prompts with harmful completions                             [nats per token]
    r   refusal loss: the same harmful prompts, each with one generic refusal              [nats per token]

    g_a = grad f(w)        d = g_h - grad h(w_pert), the gradient of the sharpness
    lam_raw = max(0, eta - cos(g_a, d))   "cosine"        or   max(0, eta - <g_a, d> / |d|^2)   "kkt"
    lam_t   = m * lam_{t-1} + (1 - m) * lam_raw           (first step: lam_raw)
    update  = g_a + lam_t * d + lam2 * grad r(w_pert)

"kkt" is the paper's: the direction closest to g_a that still flattens, <d, update> >= eta |d|^2. The released code
divides by |d| |g_a| instead, and the published numbers come from that, so "cosine" is the default.

Norms, products and cosines run over all trainable weights together and over the whole optimiser step.
Four forward and four backward passes; the release makes five of each and a deep copy of the model. The two at w_pert
are over the same prompts, whose forward is made once for both (StepContext.gradients_on_shared_prompts). Their backward
is not: grad h is needed apart from grad r, since lam_t depends on it. The rows of f and h are drawn independently, as
in the release, so that these two passes share nothing.

Reference: Antibody, ICLR 2026, https://arxiv.org/abs/2603.00498. Departures from the release: lam_t is kept in
checkpoints (there a resumed run restarts its average); a harmful row is paired with another refusal each time, number
(step * B + position in the batch) mod n (there row i keeps refusal i mod n); any gradient accumulation and number of
ranks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...likelihood.microbatch import StepBatch
from ...primitives.gradients import Gradients, combined, difference, dot, norm, scaled, unit
from ...primitives.perturb import perturbed_weights
from ...training.defence import About, Defence
from ...training.step import Batches, StepContext, StepResult, Sweep

Normalisation = Literal["cosine", "kkt"]


@dataclass(frozen=True, kw_only=True)
class AntibodyAlignmentConfig:
    """Hyperparameters. Defaults are those of the released scripts, the same for Llama-2-7B, Qwen2-7B and Gemma."""

    alpha: float = 0.1
    """Radius of the simulated attack: L2 norm over all trainable weights. Scripts: alpha = rho = 0.1."""
    eta: float = 5.0
    """Strength of the flattening. Scripts: 5. In a small model, with full fine-tuning, that is so much that refusals
    are hardly learnt."""
    m: float = 0.99
    """Decay of the average of lam, 0 to 1. Scripts: 0.99; the code's own default is 0.9."""
    lam2: float = 0.05
    """Weight of the refusal loss at the attacked weights. Scripts: 0.05."""
    normalisation: Normalisation = "cosine"
    """"cosine": the release. "kkt": the paper."""
    lam: float | None = None
    """A constant instead of the adaptive lam_t. 0, with lam2 = 0, is plain SFT."""

    def __post_init__(self) -> None:
        for name in ("alpha", "eta", "lam2", "lam"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ConfigError(f"antibody.{name} is {value}: must be a finite number, 0 or more.")
        if not 0 <= self.m < 1:
            raise ConfigError(f"antibody.m is {self.m}: a decay lies in [0, 1). 0 switches the average off.")


def adaptive_lambda(g_a: Sequence[Tensor], d: Sequence[Tensor], *, eta: float, normalisation: Normalisation) -> Tensor:
    """lam_raw: a float64 scalar, 0 or more."""
    product = dot(g_a, d)
    if normalisation == "kkt":
        alignment = product / (dot(d, d) + 1e-12)
    else:
        alignment = product / (norm(g_a) * norm(d) + 1e-8)
    return (eta - alignment).clamp(min=0.0)


def antibody_update(
    params: Sequence[nn.Parameter],
    *,
    alignment_gradient: Callable[[], Gradients],
    harmful_gradient: Callable[[], Gradients],
    attacked_gradients: Callable[[], tuple[Gradients, Gradients]],
    alpha: float,
    lam: Callable[[Gradients, Gradients], float | Tensor],
    lam2: float,
) -> Gradients:
    """Compute the update at the current weights. Each gradient is taken where it is called.

    Args:
        params: Trainable weights, perturbed for two of the four passes and restored exactly.
        alignment_gradient: grad f here.
        harmful_gradient: grad h here, at w.
        attacked_gradients: grad h and grad r here, at w_pert; the second is not looked at if ``lam2`` is 0.
        alpha: Radius of the simulated attack.
        lam: A function that gives lam_t from (g_a, d).
        lam2: Weight of the refusal term.
    """
    g_a = alignment_gradient()  # pass 1, at w
    g_h = harmful_gradient()  # pass 2, at w
    with perturbed_weights(params, scaled(unit(g_h), -alpha)):  # w_pert
        g_p, g_r = attacked_gradients()  # passes 3 and 4
    d = difference(g_h, g_p)
    return combined(g_a, (lam(g_a, d), d), (lam2, g_r))


class AntibodyAlignment(Defence):
    """Defence that binds the update to the batches of an optimiser step."""

    config: AntibodyAlignmentConfig
    stage = Stage.ALIGNMENT
    about = About(
        summary="flat alignment: refuse, also one attack step away",
        paper="2603.00498",
        forwards=4,
        backwards=4,
        extra_memory="4 gradients and 1 copy of the trainable weights",
    )
    options = AntibodyAlignmentConfig
    batches = (Role.HARMFUL,)
    needs_refusals = True
    twin_passes = True
    neutral = {"lam": 0.0, "lam2": 0.0}  # eta = 0 is not neutral where cos < 0

    def __init__(self, config: AntibodyAlignmentConfig) -> None:
        self.config = config
        self.lam: Tensor | None = None  # lam_{t-1}

    def check(self, context: StepContext) -> None:
        """Check as every defence does, and compare gradients on shared prompts with separate ones."""
        super().check(context)
        harmful = StepBatch.of(context.rows[Role.HARMFUL][:4])
        context.check_shared_prompts(context.with_refusals(harmful), harmful)

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, as in the head of this file."""
        harmful = batches[Role.HARMFUL]
        losses: dict[str, float] = {}

        def kept(name: str, sweep: Sweep) -> Gradients:
            losses[name] = sweep.loss
            return sweep.gradients

        def harmful_gradient() -> Gradients:  # on prompts read as at w_pert, so that d has no rounding of another form
            (sweep,) = context.gradients_on_shared_prompts(harmful)
            return kept("harmful", sweep)

        def attacked_gradients() -> tuple[Gradients, Gradients]:
            refused = [context.with_refusals(harmful)] if self.config.lam2 else []
            *refusing, attacked = context.gradients_on_shared_prompts(*refused, harmful)
            return kept("attacked", attacked), kept("refusal", refusing[0]) if refusing else []

        update = antibody_update(
            context.parameters,
            alignment_gradient=lambda: kept("alignment", context.gradient("token_mean_nll", batches[Role.ALIGNMENT])),
            harmful_gradient=harmful_gradient,
            attacked_gradients=attacked_gradients,
            alpha=self.config.alpha,
            lam=self._lambda,
            lam2=self.config.lam2,
        )
        metrics = {f"loss_{name}": loss for name, loss in losses.items()}
        metrics["sharpness"] = losses["harmful"] - losses["attacked"]
        lam = self.config.lam if self.lam is None else self.lam
        assert lam is not None, "the update has made the average"
        metrics["lam"] = float(lam)
        return StepResult(update, losses["alignment"], metrics)

    def _lambda(self, g_a: Gradients, d: Gradients) -> float | Tensor:
        if self.config.lam is not None:
            return self.config.lam
        raw = adaptive_lambda(g_a, d, eta=self.config.eta, normalisation=self.config.normalisation)
        m = self.config.m
        self.lam = raw if self.lam is None else m * self.lam + (1 - m) * raw
        return self.lam

    def state(self) -> dict[str, Tensor]:
        """The average of lam."""
        return {} if self.lam is None else {"lam": self.lam.cpu()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        if "lam" in state:
            self.lam = state["lam"].to(torch.float64)
