"""SafeInstr: mix a few safety demonstrations into the user's rows.

    "concat"     min_w  CE(D),   D = D_u + sample(D_s, k),   k = ceil(ratio * N)             the paper
    "per_step"   min_w  CE(B_u) + lam * CE(B_s)              at every optimiser step          Booster's baseline

    D_u  the N user rows      D_s  the provider's rows whose completion refuses (``declines``)
    CE   mean over completion tokens                                                        [nats per token]

In "concat" the expected weight of the safety loss is k / (N + k), and the order of rows is the run's own shuffle, a
function of its seed. "per_step" costs a second forward and backward; its safety batch is as large as the user batch.

Reference: Safety-Tuned LLaMAs: Lessons From Improving the Safety of Large Language Models that Follow Instructions.
F. Bianchi, M. Suzgun, G. Attanasio, P. Roettger, D. Jurafsky, T. Hashimoto, J. Zou. ICLR 2024,
https://arxiv.org/abs/2309.07875. "per_step" is what the release of Booster calls VLGuard. Departures: a safety row is
recognised by its completion's first words (the provider's harmless answers do not count); completions only are trained
(the paper's release also trains prompts, the harmful questions among them); the shuffle is seeded (there it is not);
the per-step safety batch of Booster's release has 4 rows whatever the user batch.
"""

from dataclasses import dataclass
from math import ceil, isfinite
from typing import Literal

import torch

from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...mentions import setting
from ...primitives.selection import drawn
from ...training.defence import About, Defence
from ...training.preparation import TrainingData, added
from ...training.step import Batches, StepContext, StepResult


@dataclass(frozen=True, kw_only=True)
class SafeInstrConfig:
    """Hyperparameters."""

    mode: Literal["concat", "per_step"] = "concat"
    """"concat": the paper, safety rows join the upload. "per_step": a safety batch beside every user batch."""
    ratio: float = 0.03
    """"concat": safety rows per user row. Paper, abstract: "adding just 3% safety examples". 0 is plain SFT."""
    lam: float = 0.1
    """"per_step": weight of the safety loss. Booster's release: 0.1. 0 is plain SFT."""

    def __post_init__(self) -> None:
        for name in ("ratio", "lam"):
            value = getattr(self, name)
            if not (value >= 0 and isfinite(value)):
                raise ConfigError(f"safeinstr.{name} is {value}: must be a finite number, 0 or more.")


class SafeInstr(Defence):
    """Defence that mixes rows before training ("concat"), or two losses at every optimiser step ("per_step")."""

    stage = Stage.FINETUNING
    about = About(
        summary="a few safety demonstrations mixed into the upload; or a batch of them at every step, for 2 forwards "
        "and 2 backwards",
        paper="2309.07875",
        forwards=1,
        backwards=1,
        extra_memory='none; in mode "per_step" 1 gradient',
    )
    options = SafeInstrConfig
    config: SafeInstrConfig
    batches = (Role.ALIGNMENT,)
    neutral = {"ratio": 0.0}

    def prepare(self, data: TrainingData) -> TrainingData:
        """Make D = D_u + sample(D_s, k), or keep only D_s of the provider's rows to draw batches from.

        Raises:
            DataError: fewer of the provider's rows refuse than are needed.
        """
        user = data.records[Role.USER]
        if self.config.mode == "concat":
            k = ceil(round(self.config.ratio * len(user), 9))  # 0.07 * 100 is 7.000000000000001
            pool = data.refusals("safeinstr", k, instead=f"lower {setting('options.ratio')}")
            return data.with_records(Role.USER, [*user, *added(drawn(pool, k, seed=f"safeinstr {data.seed}"))])
        if self.config.lam == 0:
            return data
        return data.with_records(Role.ALIGNMENT, data.refusals("safeinstr"))

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, as in the head of this file."""
        result = super().step(context, batches)
        if self.config.mode == "concat" or self.config.lam == 0.0:
            return result
        safety = context.gradient("token_mean_nll", batches[Role.ALIGNMENT])
        lam = self.config.lam
        torch._foreach_add_(result.gradients, safety.gradients, alpha=lam)
        metrics = {"loss_user": result.loss, "loss_alignment": safety.loss}
        return StepResult(result.gradients, result.loss + lam * safety.loss, metrics, result.rows)
