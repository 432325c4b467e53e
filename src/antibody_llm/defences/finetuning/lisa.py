"""Lisa: alternate between safety rows and user rows, and tie each state to where the other one ended.

    state A, K1 steps:   min_w  f(w) + rho/2 |w - w_u|^2          f: NLL of the alignment rows   [nats per token]
    state U, K2 steps:   min_w  h(w) + rho/2 |w - w_s|^2          h: NLL of the user rows        [nats per token]

    w_u, w_s   the weights when the user / the alignment state last ended; before that, the weights at the start

One step is one gradient and the closed form of the pull:  g = grad (f or h)(w) + rho (w - a). Only the newest of the
two end points is ever read, so one copy, a, is kept. The pull is 0 in the first step after a change of state.
With LoRA it acts on the factors, not on their product. rho = 0 is BSO, plain alternation; K1 = 0 is the tether alone.

The number of steps is fixed by the upload and the epochs. The user batch of a step in state A is left out (weight 0 in
the record of rows), as in the release: an epoch trains K2 / (K1 + K2) of the user's rows.

Reference: Lisa: Lazy Safety Alignment for Large Language Models against Harmful Fine-tuning Attack. T. Huang, S. Hu,
F. Ilhan, S. F. Tekin, L. Liu. NeurIPS 2024, https://arxiv.org/abs/2405.18641, the bi-state problem and its algorithm.
Departures from the release: K1 and K2 count optimiser steps (there micro-batches, so accumulation shortens the
states); the tether acts from the first step, as in the paper (``warm_start=0.1`` is the release, step for step); one
anchor instead of two.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn

from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...primitives.gradients import Gradients
from ...primitives.proximal import proximal_penalty, proximal_pull
from ...primitives.snapshots import from_state, snapshot, snapshot_state
from ...training.defence import About, Defence
from ...training.step import Batches, RowRecord, StepContext, StepResult


@dataclass(frozen=True, kw_only=True)
class LisaConfig:
    """Hyperparameters; defaults are those of the paper."""

    num_alignment_steps: int = 100
    """K1, steps of state A. Paper: 100 of 1000. 0: no alternation."""
    num_user_steps: int = 900
    """K2, steps of state U. Paper: 900 of 1000."""
    rho: float = 1.0
    """Strength of the tether. Paper and its script: 1. Later papers that run Lisa as a baseline have 0.01."""
    warm_start: float = 0.0
    """Share of all T steps, 0 to 1, without the tether: it acts at steps t > warm_start * T, with t counted from 0.
    0: from the first step, the paper. Release: 0.1."""

    def __post_init__(self) -> None:
        for name in ("num_alignment_steps", "num_user_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"lisa.{name} is {getattr(self, name)}: a number of steps is 0 or more.")
        if self.num_alignment_steps + self.num_user_steps == 0:
            raise ConfigError("lisa.num_user_steps and lisa.num_alignment_steps are both 0: one state needs a step.")
        if not (self.rho >= 0 and isfinite(self.rho)):
            raise ConfigError(f"lisa.rho is {self.rho}: must be a finite number, 0 or more.")
        if not 0 <= self.warm_start <= 1:
            raise ConfigError(f"lisa.warm_start is {self.warm_start}: a share lies between 0 and 1.")


def aligning(step: int, *, num_alignment_steps: int, num_user_steps: int) -> bool:
    """Whether optimiser step ``step`` (0-based) is in state A."""
    return step % (num_alignment_steps + num_user_steps) < num_alignment_steps


def tethered(step: int, max_steps: int, warm_start: float) -> bool:
    """Whether the tether acts at optimiser step ``step`` (0-based) of ``max_steps``.

    Release: ``self.steps > 0.1 * len(dataloader) * num_train_epochs``, so it is still off if both are equal.
    """
    return warm_start == 0 or step > warm_start * max_steps


def lisa_update(
    params: Sequence[nn.Parameter], anchor: Sequence[Tensor], *, gradient: Callable[[], Gradients], rho: float
) -> Gradients:
    """Compute grad (f or h)(w) + rho (w - a) at the current weights."""
    g = gradient()
    if rho == 0:
        return g
    pull = proximal_pull(params, anchor, rho)
    torch._foreach_add_(pull, g)  # into the pull: a third list of this size would be the step's peak
    return pull


class Lisa(Defence):
    """Defence that binds the two states to the batches of an optimiser step."""

    stage = Stage.FINETUNING
    about = About(
        summary="alternate safety and user steps, tied together by a proximal term",
        paper="2405.18641",
        forwards=1,
        backwards=1,
        extra_memory="2 copies of the trainable weights (anchor and pull)",
    )
    options = LisaConfig
    batches = (Role.ALIGNMENT,)
    neutral = {"num_alignment_steps": 0, "rho": 0.0}

    def __init__(self, config: LisaConfig) -> None:
        self.config = config
        self._anchor: list[Tensor] = []

    def start(self, context: StepContext) -> None:
        """Tie both states to the weights at the start."""
        if self.config.rho:
            self._anchor = snapshot(context.parameters)

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, as in the head of this file."""
        in_a = self._aligning(context.step)
        rho = self.config.rho if tethered(context.step, context.max_steps, self.config.warm_start) else 0.0
        if self.config.rho and context.step and in_a != self._aligning(context.step - 1):
            self._anchor = snapshot(context.parameters)  # the other state has just ended here
        losses: list[float] = []

        def gradient() -> Gradients:
            sweep = context.gradient("token_mean_nll", batches[Role.ALIGNMENT if in_a else Role.USER])
            losses.append(sweep.loss)
            return sweep.gradients

        update = lisa_update(context.parameters, self._anchor, gradient=gradient, rho=rho)
        metrics = {"aligning": float(in_a)}
        if rho:
            metrics["proximal"] = proximal_penalty(context.parameters, self._anchor, rho)
        weight = torch.full((sum(1 for _ in batches[Role.USER].rows()),), 0.0 if in_a else 1.0)
        return StepResult(update, losses[0], metrics, RowRecord(weight))

    def _aligning(self, step: int) -> bool:
        c = self.config
        return aligning(step, num_alignment_steps=c.num_alignment_steps, num_user_steps=c.num_user_steps)

    def state(self) -> dict[str, Tensor]:
        """The anchor; the state itself is a function of the step."""
        return snapshot_state(self._anchor, "anchor")

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self._anchor = from_state(state, "anchor")
