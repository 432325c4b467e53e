"""Elastic weight consolidation: pull weights back to the aligned ones, most strongly those that refusing depends on.

    L = CE + lam * sum_j F_j (w_j - a_j)^2,        g = grad CE + 2 lam F (w - a)

    CE  token-mean NLL of the upload                                    a   the weights when fine-tuning starts
    F   Fisher diagonal on the provider's rows whose completion refuses (``declines``): F_j = mean_i (dl_i / dw_j)^2,
        each row's gradient squared by itself; l_i is the mean NLL of row i's refusal over its tokens
        or 1 everywhere: L2-SP  "uniform"

F is computed once, at a. The pull has a closed form and is 0 on the first step. With LoRA it acts on the factors.

L2-SP with strength rho, rho / 2 |w - a|^2, is "uniform" with lam = rho / 2. Lisa's paper (2405.18641) describes that as
the EWC of its tables.

Reference: James Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 114 (2017),
https://arxiv.org/abs/1612.00796, Eq. 3; its lambda / 2 is our lam. L2-SP: Xuhong Li, Yves Grandvalet, Franck Davoine,
Explicit Inductive Bias for Transfer Learning with Convolutional Networks, ICML 2018, https://arxiv.org/abs/1802.01483.
Departures from the copy in git-disl/Booster: there F comes from 99 *harmful* rows, and so protects the weights that
matter for harm; it squares the gradient of a batch, which is not the Fisher, and sums instead of averaging, so lam
depends on the number of batches; and the last of these gradients leaks into the first training step.

Its lam converts as follows. It sums over N / B batches of B rows; with rows drawn independently the expected square of
a batch's mean gradient is F / B + (1 - 1/B) m^2, where m = mean_i dl_i / dw and so 0 <= m^2 <= F. The sum then lies
between N / B^2 times F (m = 0) and N / B times F (all rows alike). N = 99, B = 5: its lam is 4 to 20 times as large
here. No such factor converts from its harmful rows to our refusals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from ...data.records import TokenizedRow
from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...likelihood.microbatch import StepBatch
from ...mentions import setting
from ...primitives.gradients import Gradients
from ...primitives.proximal import proximal_penalty, proximal_pull
from ...primitives.snapshots import from_state, snapshot, snapshot_state
from ...training.defence import About, Defence
from ...training.preparation import TrainingData
from ...training.step import Batches, StepContext, StepResult


@dataclass(frozen=True, kw_only=True)
class EWCConfig:
    """Hyperparameters."""

    lam: float = 1e-2
    """Strength. 0 is plain SFT. Booster's copy: 1e-3, which is 0.004 to 0.02 here (head of the file; B = 5 is from
    its other scripts, none of which runs EWC). On the lab this has no measurable effect: an aligned model gives
    refusals small gradients. It begins to act at 100 to 1e4; 1e6 halves the harmful score, and the task suffers."""
    importance: Literal["fisher", "uniform"] = "fisher"
    """"fisher": F from rows that refuse. "uniform": F = 1, L2-SP."""
    num_fisher_rows: int = 100
    """Refusals that F is computed from, drawn with the run's seed; all of them if there are fewer. Booster's copy: 100
    (of which it drops one)."""

    def __post_init__(self) -> None:
        if not (self.lam >= 0 and isfinite(self.lam)):
            raise ConfigError(f"ewc.lam is {self.lam}: must be a finite number, 0 or more.")
        if self.num_fisher_rows < 1:
            raise ConfigError(f"ewc.num_fisher_rows is {self.num_fisher_rows}: a mean needs at least one row.")


def fisher_diagonal(context: StepContext, rows: Sequence[TokenizedRow]) -> Gradients:
    """F, the mean over rows of each row's squared gradient, by a backward pass per row; every rank takes all rows."""
    total: Gradients = [torch.zeros_like(p) for p in context.parameters]
    for row in rows:
        gradients = context.gradient("sequence_mean_nll", StepBatch.of([row])).gradients
        for f, g in zip(total, gradients, strict=True):
            f.addcmul_(g, g)
    torch._foreach_div_(total, len(rows))
    return total


class EWC(Defence):
    """Defence that adds the pull to a plain step."""

    stage = Stage.FINETUNING
    about = About(
        summary="a quadratic pull back to the aligned weights, by their importance for refusing",
        paper="1612.00796",
        forwards=1,
        backwards=1,
        extra_memory="3 copies of the trainable weights (anchor, F and pull)",
    )
    options = EWCConfig
    reads_at_start: tuple[Role, ...] = (Role.ALIGNMENT,)  # none for L2-SP, which needs no data of the provider
    neutral = {"lam": 0.0}

    def __init__(self, config: EWCConfig) -> None:
        self.config = config
        self.anchor: list[Tensor] = []
        self.fisher: list[Tensor] | None = None
        if config.importance == "uniform":
            self.reads_at_start = ()

    def prepare(self, data: TrainingData) -> TrainingData:
        """Keep the provider's rows that refuse, if F comes from them.

        Raises:
            DataError: no row refuses.
        """
        if self.config.lam == 0 or self.config.importance == "uniform":
            return data
        refusals = data.refusals("ewc", instead=f"hold all weights alike: {setting('options.importance', 'uniform')}")
        return data.with_records(Role.ALIGNMENT, refusals)

    def start(self, context: StepContext) -> None:
        """Keep the anchor, and compute F there."""
        if self.config.lam == 0:
            return
        self.anchor = snapshot(context.parameters)
        if self.config.importance == "fisher":
            rows = context.rows[Role.ALIGNMENT]
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(context.seed)).tolist()
            self.fisher = fisher_diagonal(context, [rows[i] for i in order[: self.config.num_fisher_rows]])

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, grad CE + 2 lam F (w - a)."""
        plain = super().step(context, batches)
        if self.config.lam == 0:
            return plain
        params, rho = context.parameters, 2 * self.config.lam
        pull = proximal_pull(params, self.anchor, rho, self.fisher)
        metrics = {"proximal": proximal_penalty(params, self.anchor, rho, self.fisher)}
        torch._foreach_add_(pull, plain.gradients)  # into the pull: a third list of this size would be the step's peak
        return StepResult(pull, plain.loss, metrics, plain.rows)

    def state(self) -> dict[str, Tensor]:
        """Anchor and F."""
        return snapshot_state(self.anchor, "anchor") | snapshot_state(self.fisher or [], "fisher")

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self.anchor = from_state(state, "anchor")
        self.fisher = from_state(state, "fisher") or None
