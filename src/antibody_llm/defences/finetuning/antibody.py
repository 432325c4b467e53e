"""Antibody, fine-tuning stage: give less weight to rows that the model would rather refuse.

    s_i = NLL(r_i | x_i) - NLL(y_i | x_i)              token means, nats: log-likelihood ratio target : refusal
    w   = softmax(s / tau) over the optimiser step     no gradient
    L   = sum_i w_i NLL_i / sum_i w_i N_i              "token": NLL_i summed over N_i tokens, EOS included
    L   = sum_i w_i NLL_i / N_i                        "sequence": the paper's sum of w_i grad l_i  (Sec. 4.2)

    r_i  one generic refusal: number (row id) mod n of the list, the same for a row throughout

An aligned model finds a refusal likely and the target unlikely on a harmful prompt: s_i is low and the row's weight
small. A row with several trained turns has the score of its worst one, so that a harmless last turn hides nothing.

The weights come from the current model, out of the forward that trains: NLL(y|x) is detached from it, and the refusal
is scored on its keys and values (likelihood/refusals.py). One forward and one backward, and a short forward over the
refusal's tokens; the release makes three forwards and one backward.

Reference: Antibody, ICLR 2026, https://arxiv.org/abs/2603.00498. Departures from the release: its denominator is
clamped at 1, which never acts since the weights add to 1; any gradient accumulation and number of ranks (the softmax
spans them exactly, StepContext.gradient).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...likelihood.completion import TurnNLL
from ...likelihood.microbatch import MicroBatch
from ...likelihood.refusals import Scoring
from ...training.defence import About, Defence
from ...training.step import Batches, RowRecord, RowTerms, StepContext, StepResult


@dataclass(frozen=True, kw_only=True)
class AntibodyFinetuningConfig:
    """Hyperparameters; defaults are those of the release."""

    tau: float = 1.0
    """Temperature of the softmax, nats. Release: 1. Infinite is plain SFT; at small scale 0.15 to 0.3 is needed."""
    loss_reduction: Literal["token", "sequence"] = "token"
    """"token": the release, a weighted mean over tokens. "sequence": the paper, a weighted mean over rows."""
    scoring: Scoring = Scoring.AUTO
    """The forward in which refusals are scored: the training forward's keys and values ("cached"), or "separate"."""

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise ConfigError(f"antibody.tau is {self.tau}: a temperature is above 0. Infinity (.inf) is plain SFT.")


def row_scores(completion: TurnNLL, refusal: TurnNLL) -> Tensor:
    """s_i: [B], nats; the lowest over several trained turns."""
    s = refusal.mean - completion.mean.detach()
    return s.masked_fill(~completion.present, math.inf).min(dim=1).values


class AntibodyFinetuning(Defence):
    """Defence that binds weights and loss to the rows of an optimiser step."""

    stage = Stage.FINETUNING
    about = About(
        summary="likelihood-ratio weights: rows the model would rather refuse count for less",
        paper="2603.00498",
        forwards=1.1,
        backwards=1,
        extra_memory="none",
    )
    options = AntibodyFinetuningConfig
    config: AntibodyFinetuningConfig
    needs_refusals = True
    # A separate forward leaves the training forward untouched to the last bit.
    neutral = {"tau": math.inf, "scoring": "separate"}

    def check(self, context: StepContext) -> None:
        """Check as every defence does, and compare the two forms of scoring."""
        context.check(self.config.scoring)

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, as in the head of this file."""
        batch = batches[Role.USER]
        sweep = context.gradient(lambda micro: self._terms(context, micro), batch)
        weight = sweep.weights * batch.num_rows
        return StepResult(sweep.gradients, sweep.loss, rows=RowRecord(weight, sweep.scores))

    def _terms(self, context: StepContext, micro: MicroBatch) -> RowTerms:
        nll, refusal = context.completion_and_refusal_nll(micro, self.config.scoring)
        s = row_scores(nll, refusal)
        # w = softmax(s / tau): ``StepContext.gradient`` takes the softmax, over all rows of the step.
        log_weight = s / self.config.tau
        if self.config.loss_reduction == "token":
            return RowTerms(nll.row_total, nll.row_tokens, log_weight, s)
        return RowTerms(nll.row_total / nll.row_tokens, torch.ones_like(nll.row_tokens), log_weight, s)
