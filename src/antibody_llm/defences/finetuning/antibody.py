"""Antibody, fine-tuning stage: rows that the model would rather refuse count for less.

    s_i = NLL(r_i | x_i) - NLL(y_i | x_i)              token means, nats: log-likelihood ratio target : refusal
    w   = softmax(s / tau) over the optimiser step     no gradient
    L   = sum_i w_i NLL_i / sum_i w_i N_i              "token": NLL_i summed over N_i tokens, EOS included
    L   = sum_i w_i NLL_i / N_i                        "sequence": the paper's sum of w_i grad l_i  (Sec. 4.2)

    r_i  one generic refusal: number (row id) mod n of the list, the same for a row throughout

An aligned model finds a refusal likely and the target unlikely on a harmful prompt: s_i is low and the row's weight
small. A row with several trained turns has the score of its worst one, so that a harmless last turn hides nothing.

The weights come from the model as it is now (``score_with="current"``), out of the forward that trains: NLL(y|x) is
detached from it and the refusal rides on its keys and values (likelihood/refusals.py). One forward and one backward,
and a short forward over the refusal's tokens; the release makes three forwards and one backward. With ``"aligned"``
every row is scored once, before training.

Reference: Antibody, ICLR 2026, https://arxiv.org/abs/2603.00498. Departures from the release: its denominator is
clamped at 1, which never acts since the weights add to 1; any gradient accumulation and number of ranks (the softmax
spans them exactly, StepContext.gradient). ``score_with="aligned"`` and ``score="shift"`` are ours.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...likelihood.completion import TurnNLL
from ...likelihood.microbatch import MicroBatch, StepBatch
from ...likelihood.refusals import Scoring
from ...screening.evidence import EvidenceKind
from ...screening.reading import collect
from ...training.defence import About, Defence
from ...training.step import RowRecord, RowTerms, StepContext, StepResult


@dataclass(frozen=True, kw_only=True)
class AntibodyFinetuningConfig:
    """Hyperparameters; defaults are the release's."""

    tau: float = 1.0
    """Temperature of the softmax, nats. Release: 1. Infinite is plain SFT; at small scale 0.15 to 0.3 is needed."""
    loss_reduction: Literal["token", "sequence"] = "token"
    """"token": the release, a weighted mean over tokens. "sequence": the paper, a weighted mean over rows."""
    score_with: Literal["current", "aligned"] = "current"
    """"current": the model as it is now. "aligned": the model before the first step, once; no drift. Ours."""
    score: Literal["ratio", "shift"] = "ratio"
    """"ratio": the paper's s_i. "shift": NLL(r_i|x_i) - NLL_0(r_i|x_i), how far alignment lowered the refusal's
    likelihood, read once before training; 0 marks the model before its alignment (screening/evidence.py). Ours."""
    scoring: Scoring = Scoring.AUTO
    """Where refusals are scored: on the training forward's keys and values ("cached"), or "separate"."""

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise ConfigError(f"antibody.tau is {self.tau}: a temperature is above 0. Infinity (.inf) is plain SFT.")


def row_scores(completion: TurnNLL, refusal: TurnNLL) -> Tensor:
    """s_i: [B], nats; over several trained turns the lowest."""
    s = refusal.mean - completion.mean.detach()
    return s.masked_fill(~completion.present, math.inf).min(dim=1).values


class AntibodyFinetuning(Defence):
    """Binds weights and loss to the rows of an optimiser step."""

    stage = Stage.FINETUNING
    about = About(
        summary="likelihood-ratio weights: rows the model would rather refuse count for less",
        paper="2603.00498",
        forwards=1.1,
        backwards=1,
        extra_memory="none",
    )
    options = AntibodyFinetuningConfig
    needs_refusals = True
    # A separate forward leaves the training forward untouched to the last bit.
    neutral = {"tau": math.inf, "scoring": "separate"}

    def __init__(self, config: AntibodyFinetuningConfig) -> None:
        self.config = config
        self.needs_base = config.score == "shift"
        self._aligned: dict[int, float] = {}  # s_i by row id

    def check(self, context: StepContext) -> None:
        """Also compare the two forms of scoring."""
        context.check(self.config.scoring)

    def start(self, context: StepContext) -> None:
        """Score the whole upload once, if that is wanted."""
        if self.config.score == "shift":
            shift = collect(context, context.rows[Role.USER], [EvidenceKind.SHIFT], num_refusals=1).of(
                EvidenceKind.SHIFT
            )
            self._keep(context, -shift)
        elif self.config.score_with == "aligned":
            scores = context.over_rows(Role.USER, lambda micro: self._scored(context, micro)[1])
            self._keep(context, scores)

    def _keep(self, context: StepContext, scores: Tensor) -> None:
        ids = [row.row_id for row in context.rows[Role.USER]]
        self._aligned = dict(zip(ids, scores.tolist(), strict=True))

    def step(self, context: StepContext, batches: Mapping[str, StepBatch]) -> StepResult:
        """One step: see the head of this file."""
        batch = batches[Role.USER]
        sweep = context.gradient(lambda micro: self._terms(context, micro), batch)
        weight = sweep.weights * batch.num_rows
        return StepResult(sweep.gradients, sweep.loss, rows=RowRecord(weight, sweep.scores))

    def _terms(self, context: StepContext, micro: MicroBatch) -> RowTerms:
        nll, s = self._scored(context, micro)
        log_weight = s / self.config.tau
        if self.config.loss_reduction == "token":
            return RowTerms(nll.row_total, nll.row_tokens, log_weight, s)
        return RowTerms(nll.row_total / nll.row_tokens, torch.ones_like(nll.row_tokens), log_weight, s)

    def _scored(self, context: StepContext, micro: MicroBatch) -> tuple[TurnNLL, Tensor]:
        """NLL(y|x) with its graph, and s_i."""
        if self._aligned:
            s = torch.tensor([self._aligned[row.row_id] for row in micro.rows], device=context.device)
            return context.completion_nll(micro), s
        nll, refusal = context.completion_and_refusal_nll(micro, self.config.scoring)
        return nll, row_scores(nll, refusal)

    def state(self) -> dict[str, Tensor]:
        """The stored scores: [rows, 2], row id and s_i."""
        return {"aligned_scores": torch.tensor(list(self._aligned.items()), dtype=torch.float64).reshape(-1, 2)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up the stored scores."""
        self._aligned = {int(row_id): score for row_id, score in state["aligned_scores"].tolist()}
