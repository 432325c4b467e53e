"""antibody-prescored (ours): Antibody's weights from scores that are read once, before training.

    s_i = NLL(r_i | x_i) - NLL(y_i | x_i)       "ratio": Antibody's own score, of the model before the first step
    s_i = NLL(r_i | x_i) - NLL_0(r_i | x_i)     "shift": how far alignment raised the refusal's cost; 0 marks the model
                                                before its alignment
    w   = softmax(s / tau) over the optimiser step     no gradient
    L   = sum_i w_i NLL_i / sum_i w_i N_i       "token"        or    sum_i w_i NLL_i / N_i       "sequence"

    NLL  nats per token in s, summed over the N_i completion tokens in L      r_i  refusal (row id) mod n of the list

These are two ablations of Antibody (2603.00498), not in the paper. "ratio" shows what the scores gain from following
the model: scores that are read once cannot drift. "shift" removes whether the model knows y, which the ratio mixes
with whether it wants to refuse x; both evidences are those of screening/evidence.py with the opposite sign. A row with
several trained turns has the score of its worst one. One forward and one backward, after one pass over the upload.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...likelihood.microbatch import MicroBatch
from ...likelihood.refusals import Scoring
from ...screening.evidence import EvidenceKind
from ...screening.reading import collect
from ...training.defence import About, Defence
from ...training.step import Batches, RowRecord, RowTerms, StepContext, StepResult


@dataclass(frozen=True, kw_only=True)
class AntibodyPrescoredConfig:
    """Hyperparameters; tau and the reduction are Antibody's."""

    tau: float = 1.0
    """Temperature of the softmax, nats. Infinite is plain SFT."""
    loss_reduction: Literal["token", "sequence"] = "token"
    """"token": a weighted mean over tokens. "sequence": a weighted mean over rows."""
    score: Literal["ratio", "shift"] = "ratio"
    """The score, as in the head of this file."""

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise ConfigError(
                f"antibody-prescored.tau is {self.tau}: a temperature is above 0. Infinity (.inf) is plain SFT."
            )


class AntibodyPrescored(Defence):
    """Defence that binds scores read once to the rows of an optimiser step."""

    stage = Stage.FINETUNING
    about = About(
        summary="ours: antibody's weights from scores that are read once, before training; an ablation",
        paper="",
        forwards=1,
        backwards=1,
        extra_memory='a number per row; with score "shift" the model before alignment, while scores are read',
    )
    options = AntibodyPrescoredConfig
    needs_refusals = True
    neutral = {"tau": math.inf}

    def __init__(self, config: AntibodyPrescoredConfig) -> None:
        self.config = config
        self.needs_base = config.score == "shift"
        self._scores: dict[int, float] = {}  # s_i by row id

    def check(self, context: StepContext) -> None:
        """Compare likelihoods with the plain path, including those of refusals."""
        context.check(Scoring.AUTO)

    def start(self, context: StepContext) -> None:
        """Score the whole upload."""
        rows, kind = context.rows[Role.USER], EvidenceKind(self.config.score)
        scores = -collect(context, rows, [kind], num_refusals=1).of(kind)
        self._scores = dict(zip((row.row_id for row in rows), scores.tolist(), strict=True))

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, as in the head of this file."""
        batch = batches[Role.USER]
        sweep = context.gradient(lambda micro: self._terms(context, micro), batch)
        return StepResult(sweep.gradients, sweep.loss, rows=RowRecord(sweep.weights * batch.num_rows, sweep.scores))

    def _terms(self, context: StepContext, micro: MicroBatch) -> RowTerms:
        s = torch.tensor([self._scores[row.row_id] for row in micro.rows], device=context.device)
        mean = context.token_mean_nll if self.config.loss_reduction == "token" else context.sequence_mean_nll
        return replace(mean(micro), log_weight=s / self.config.tau, score=s)

    def state(self) -> dict[str, Tensor]:
        """The scores, [rows, 2] with row id and s_i."""
        return {"scores": torch.tensor(list(self._scores.items()), dtype=torch.float64).reshape(-1, 2)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self._scores = {int(row_id): score for row_id, score in state["scores"].tolist()}
