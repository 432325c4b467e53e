"""Panacea: fine-tune so that one final push, which raises the harmful loss, costs the task nothing; then push.

    max_w max_{|e| <= rho}  lam * (h(w + e) - h(w)) - g(w),       e = rho * g_h / |g_h|,  g_h = grad h(w)
    update = grad g(w) - lam * (grad h(w + e) - g_h)                  e held constant: the secant with s = +rho
    w_out  = w_T + e_T                                                once, after the last step

    g   user loss: token-mean NLL of the upload                                      [nats per token]
    h   harmful loss: harmful prompts with harmful completions                       [nats per token]
    w   trainable weights; |g_h| is one L2 norm over all of them together

If h(w + e) reaches ``CEILING``, the push is strong enough, and the bracket counts as constant. e_T is the e of the
last step, from that step's harmful batch, before the last update. Booster lowers |g_h| with the same two gradients;
this raises it, so that the push has an effect. Three forward and three backward passes; lam = 0 is plain SFT and then
one push.

Reference: Yibo Wang, Tiansheng Huang, Li Shen, Huanjin Yao, Haotian Luo, Rui Liu, Naiqiang Tan, Jiaxing Huang, Dacheng
Tao, Panacea: Mitigating Harmful Fine-tuning for Large Language Models via Post-fine-tuning Perturbation, NeurIPS 2025,
https://arxiv.org/abs/2501.18100. Departures from the release (w-yibo/Panacea), which does not run as published: at the
ceiling it drops grad h(w + e) alone, and so *descends* on the harmful loss; ours drops the bracket. It restores weights
by subtraction, and its e survives only because of how gradients are emptied; ours is a copy and is kept in checkpoints.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn

from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...primitives.gradients import Gradients, combined, scaled
from ...primitives.secant import secant
from ...primitives.snapshots import from_state, snapshot_state
from ...training.defence import About, Defence
from ...training.step import Batches, RowRecord, StepContext, StepResult

CEILING = 5.0
"""Nats per token at which the harmful loss is high enough. Release: 5."""


@dataclass(frozen=True, kw_only=True)
class PanaceaConfig:
    """Hyperparameters; defaults are those of the release."""

    rho: float = 1.0
    """Length of the push: L2 norm over all trainable weights. Release: eps_rho = 1. 0 is plain SFT."""
    lam: float = 1e-3
    """Weight of the gain in harmful loss. Release: 0.001."""

    def __post_init__(self) -> None:
        for name in ("rho", "lam"):
            value = getattr(self, name)
            if not (value >= 0 and isfinite(value)):
                raise ConfigError(f"panacea.{name} is {value}: must be a finite number, 0 or more.")


def panacea_update(
    params: Sequence[nn.Parameter],
    *,
    user_gradient: Callable[[], Gradients],
    harmful_gradient: Callable[[], Gradients],
    saturated: Callable[[], bool],
    rho: float,
    lam: float,
) -> tuple[Gradients, Gradients]:
    """Compute the update at the current weights, and e. Each gradient is taken where it is called.

    Args:
        params: Trainable weights, perturbed for the second pass and restored exactly.
        user_gradient: grad g here.
        harmful_gradient: grad h here.
        saturated: A function, called after the second pass, that says whether h(w + e) has reached the ceiling.
        rho: Length of e.
        lam: Weight of the bracket.
    """
    pushed = secant(params, harmful_gradient, rho)  # pass 1, at w, and pass 2, at w + e, which needs the most memory
    weight = 0.0 if saturated() else lam
    g = user_gradient()  # pass 3, at w
    return combined(g, (weight, pushed.difference)), scaled(pushed.direction, rho)


class Panacea(Defence):
    """Defence that binds the update to the batches of an optimiser step, and pushes at the end."""

    stage = Stage.FINETUNING
    about = About(
        summary="a final push up the harmful loss, for which fine-tuning prepares",
        paper="2501.18100",
        forwards=3,
        backwards=3,
        extra_memory="4 copies of the trainable weights, gradients included",
    )
    options = PanaceaConfig
    batches = (Role.HARMFUL,)
    twin_passes = True
    neutral = {"rho": 0.0}

    def __init__(self, config: PanaceaConfig) -> None:
        self.config = config
        self.push: list[Tensor] = []  # e of the latest step

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, as in the head of this file."""
        if self.config.rho == 0:
            return super().step(context, batches)
        losses: list[float] = []  # h(w), h(w + e), g(w)

        def gradient(role: Role) -> Gradients:
            sweep = context.gradient("token_mean_nll", batches[role])
            losses.append(sweep.loss)
            return sweep.gradients

        self.push = []  # of the last step; computed again here
        update, self.push = panacea_update(
            context.parameters,
            user_gradient=lambda: gradient(Role.USER),
            harmful_gradient=lambda: gradient(Role.HARMFUL),
            saturated=lambda: losses[-1] >= CEILING,
            rho=self.config.rho,
            lam=self.config.lam,
        )
        metrics = {"loss_harmful": losses[0], "loss_pushed": losses[1]}
        weight = torch.ones(sum(1 for _ in batches[Role.USER].rows()))
        return StepResult(update, losses[2], metrics, RowRecord(weight))

    @torch.no_grad()
    def finish(self, context: StepContext) -> None:
        """w_T + e_T."""
        if self.config.rho:
            for p, e in zip(context.parameters, self.push, strict=True):
                p.add_(e)

    def state(self) -> dict[str, Tensor]:
        """The e of the latest step."""
        return snapshot_state(self.push, "push")

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self.push = from_state(state, "push")
