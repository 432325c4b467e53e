"""Constrained SFT: the first tokens of an answer may move little from what the aligned model says; later ones may more.

    L   = sum_it w_it CE_it / sum_i N_i                                                     over the optimiser step
    w   = max(FLOOR, 2 (1 - sigmoid(beta_t (log p_it - log p^0_it))))         no gradient; 1 where beta_t = 0
    b_t = beta * first    t = 1                the first token of a trained answer
          beta * opening  t = 2 .. OPENING
          beta            t > OPENING

    CE_it   -log p_it, nats: NLL of token t of row i under the model that trains; N_i completion tokens of row i
    p^0_it  the same token's probability under the model before its first step, read once

The step is the gradient of sum_t (2 / b_t) softplus(b_t (log p^0 - log p)) up to the floor: a row is learnt until it is
some nats likelier than before, about 1 / b_t of them, and then hardly any further. A refusal is decided by an answer's
first tokens, which fine-tuning moves most. Before the first step every weight is 1. A row with several trained turns
has first tokens in each.

Reference: Xiangyu Qi, Ashwinee Panda, Kaifeng Lyu, Xiao Ma, Subhrajit Roy, Ahmad Beirami, Prateek Mittal, Peter
Henderson, Safety Alignment Should Be Made More Than Just a Few Tokens Deep, ICLR 2025, https://arxiv.org/abs/2406.05946:
its constrained fine-tuning objective, with the floor and the strengths of the release. Its other half, safety
recovery examples, is an alignment: defences/alignment/safety_recovery.py. Departure: with dropout p^0 is read without.
One forward and one backward, after one forward of the upload.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from ...data.records import TokenizedRow
from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...likelihood.microbatch import MicroBatch
from ...likelihood.tokens import NO_TOKENS, TokenTable, read_tokens
from ...training.defence import About, Defence
from ...training.step import Batches, RowRecord, RowTerms, StepContext, StepResult

FLOOR = 1e-3
"""Smallest weight of a token. Release: 1e-3."""
OPENING = 5
"""The last token of an answer's opening, 1-based. Paper: 5."""


@dataclass(frozen=True, kw_only=True)
class ConstrainedSFTConfig:
    """Hyperparameters; defaults are those of the release."""

    beta: float = 0.1
    """Strength at tokens after the opening, per nat. 0 is plain SFT."""
    first: float = 5.0
    """The factor of the strength at an answer's first token."""
    opening: float = 20.0
    """The factor of the strength at its tokens 2 to 5."""

    def __post_init__(self) -> None:
        for name in ("beta", "first", "opening"):
            value = getattr(self, name)
            if not (value >= 0 and isfinite(value)):
                raise ConfigError(f"constrained-sft.{name} is {value}: must be a finite number, 0 or more.")


def strengths(row: TokenizedRow, config: ConstrainedSFTConfig) -> Tensor:
    """b_t of every trained token of a row: [N_i], per nat."""
    turns = []
    for start, end in row.spans:
        b = torch.full((end - start,), config.beta)
        b[1:OPENING] = config.beta * config.opening
        b[0] = config.beta * config.first
        turns.append(b)
    return torch.cat(turns)


def token_weights(log_ratio: Tensor, strength: Tensor) -> Tensor:
    """w of every token, FLOOR to 2, from log p - log p^0 in nats and b_t, of one shape."""
    return (2 * torch.sigmoid(-strength * log_ratio)).clamp(min=FLOOR)


class ConstrainedSFT(Defence):
    """Defence that weighs every token by how far it has moved from the aligned model."""

    stage = Stage.FINETUNING
    about = About(
        summary="a token that has become likelier than the aligned model had it loses weight, the first ones soonest",
        paper="2406.05946",
        forwards=1,
        backwards=1,
        extra_memory="2 numbers per trained token of the upload",
    )
    options = ConstrainedSFTConfig
    neutral = {"beta": 0.0}

    def __init__(self, config: ConstrainedSFTConfig) -> None:
        self.config = config
        self.before = NO_TOKENS  # -log p^0

    def start(self, context: StepContext) -> None:
        """Read p^0 of every token of the upload."""
        if self.config.beta:
            self.before = read_tokens(context, context.rows[Role.USER])

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, as in the head of this file."""
        if self.config.beta == 0:
            return super().step(context, batches)
        sweep = context.gradient(lambda micro: self._terms(context, micro), batches[Role.USER])
        assert sweep.scores is not None
        return StepResult(sweep.gradients, sweep.loss, rows=RowRecord(sweep.scores))

    def _terms(self, context: StepContext, micro: MicroBatch) -> RowTerms:
        found = context.completion_logits(micro)
        trained, nll = found.trained, found.nll
        strength = torch.cat([strengths(row, self.config) for row in micro.rows]).to(nll.device)
        log_ratio = (self.before.over(micro, trained) - nll.detach())[trained]
        w = torch.zeros_like(nll).masked_scatter(trained, token_weights(log_ratio, strength))
        num_tokens = trained.sum(dim=1).float()
        return RowTerms((w * nll).sum(dim=1), num_tokens, score=w.sum(dim=1) / num_tokens)

    def state(self) -> dict[str, Tensor]:
        """p^0."""
        return self.before.state("before")

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self.before = TokenTable.from_state(state, "before")
