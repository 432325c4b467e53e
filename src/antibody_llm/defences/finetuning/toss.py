"""TOSS: leave out the tokens that a model of harm expects and a model of help does not.

    s_it = -log p_u(y_it | x_i, y_i<t) + log p_h(y_it | x_i, y_i<t)      score of token t of row i, nats; high is harm
    m_it = 0 for the share ``share`` of the tokens with the highest scores, else 1
           among all tokens of the upload ("global") or among those of the row ("row")
    L    = sum_it m_it CE_it / sum_it m_it                               over the optimiser step

    p_h   the model after a short run on the provider's harmful rows
    p_u   the model after a short run on its harmless ones
    CE    NLL of the token under the model that trains, nats

TOSS-Pro repeats the selection: the tokens left out train p_h further, and everything is scored again, ``rounds`` times
in all. Both short runs begin at the model's weights and end before training; what remains of them is a score and a bit
for each token. A step whose tokens are all left out makes no update.

Reference: Yanping Li, Zhening Liu, Zijian Li, Zehong Lin, Jun Zhang, Token-level Data Selection for Safe LLM
Fine-tuning, ICLR 2026, https://arxiv.org/abs/2603.01185: score, ranks and masks as released. Departures: p_u learns
the provider's harmless rows, since a provider has no clean slice of the user's task as the paper's has; how far p_h is
trained on the tokens left out is ours (``num_epochs`` passes over the rows that have some).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...data.records import TokenizedRow
from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...likelihood.microbatch import MicroBatch, StepBatch
from ...likelihood.tokens import NO_TOKENS, TokenTable, num_trained, read_tokens
from ...primitives.perturb import replaced_weights
from ...training.defence import About, Defence
from ...training.short_run import short_run
from ...training.step import Batches, RowLoss, RowRecord, RowTerms, StepContext, StepResult, no_update

Scope = Literal["global", "row"]


@dataclass(frozen=True, kw_only=True)
class TOSSConfig:
    """Hyperparameters; defaults are those of the release's script."""

    share: float = 0.2
    """Share of the tokens left out, 0 to below 1. 0 is plain SFT."""
    scope: Scope = "global"
    """The tokens that are ranked together: those of the upload, or those of a row."""
    rounds: int = 1
    """How often tokens are selected. 1 is TOSS, more is TOSS-Pro."""
    num_epochs: int = 2
    """Passes of each short run over its rows."""
    batch_size: int = 64
    """Rows of a step of a short run."""
    learning_rate: float = 1e-5
    """Learning rate of the short runs (Adam)."""

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ConfigError(f"toss.share is {self.share}: a share of the tokens, 0 to below 1.")
        for name in ("rounds", "num_epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"toss.{name} is {getattr(self, name)}: must be 1 or more.")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"toss.learning_rate is {self.learning_rate}: must be a finite number above 0.")


def kept_tokens(scores: TokenTable, share: float, scope: Scope) -> TokenTable:
    """m, 1 or 0 of every token: the round(share * n) highest of each n that are ranked together are 0."""
    kept = torch.ones_like(scores.values)
    groups = [(0, len(kept))] if scope == "global" else list(scores.bounds.values())
    for start, end in groups:
        highest = scores.values[start:end].argsort(descending=True, stable=True)
        kept[start:end][highest[: math.floor(share * (end - start) + 0.5)]] = 0.0
    return scores.with_values(kept)


class TOSS(Defence):
    """Defence that binds the two short runs and the masks to the rows of an optimiser step."""

    config: TOSSConfig
    stage = Stage.FINETUNING
    about = About(
        summary="tokens that a model of harm expects and a model of help does not are not trained on",
        paper="2603.01185",
        forwards=1,
        backwards=1,
        extra_memory="2 numbers per trained token; before training 3 copies of the weights and Adam's moments",
    )
    options = TOSSConfig
    reads_at_start = (Role.HARMFUL, Role.BENIGN)
    neutral = {"share": 0.0}

    def __init__(self, config: TOSSConfig) -> None:
        self.config = config
        self.scores = self.kept = NO_TOKENS  # s_it, m_it

    def start(self, context: StepContext) -> None:
        """Make both references, and select the tokens of the upload with them."""
        if self.config.share == 0:
            return
        upload = context.rows[Role.USER]
        nll = self._read(context, self._trained(context, context.rows[Role.BENIGN], "helpful"))
        harmful = self._trained(context, context.rows[Role.HARMFUL], "harmful")
        for number in range(self.config.rounds):
            if number:
                left_out = [row for row in upload if float(self.kept.of(row).sum()) < num_trained(row)]
                loss = self._loss(context, self.kept.with_values(1 - self.kept.values))
                harmful = self._trained(context, left_out, f"round{number}", loss=loss, start=harmful)
            self.scores = nll.with_values(nll.values - self._read(context, harmful).values)
            self.kept = kept_tokens(self.scores, self.config.share, self.config.scope)
            if not bool((self.kept.values == 0).any()):
                break  # too few tokens to leave one out

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, as in the head of this file."""
        if self.config.share == 0:
            return super().step(context, batches)
        batch = batches[Role.USER]
        record = self._record(batch)
        if self._num_kept(context, batch) == 0:
            return no_update(context.parameters, record)
        sweep = context.gradient(self._loss(context, self.kept), batch)
        return StepResult(sweep.gradients, sweep.loss, rows=record)

    def _loss(self, context: StepContext, mask: TokenTable) -> RowLoss:
        def terms(micro: MicroBatch) -> RowTerms:
            found = context.completion_logits(micro)
            m = mask.over(micro, found.trained)
            return RowTerms((m * found.nll).sum(dim=1), m.sum(dim=1))

        return terms

    def _num_kept(self, context: StepContext, batch: StepBatch) -> int:
        """The tokens that the step trains on, over all ranks."""
        rows = [row for micro in batch.micro_batches for row, c in zip(micro.rows, micro.counted, strict=True) if c]
        local = sum((self.kept.of(row).sum() for row in rows), start=torch.zeros((), device=self.kept.values.device))
        return int(context.all_reduce(local))

    def _record(self, batch: StepBatch) -> RowRecord:
        """Each row's share of tokens kept, and its mean score."""
        rows = [row for row, _ in batch.rows()]
        kept, scores = (torch.stack([table.of(row).mean() for row in rows]) for table in (self.kept, self.scores))
        return RowRecord(kept, scores)

    def _trained(
        self,
        context: StepContext,
        rows: Sequence[TokenizedRow],
        name: str,
        *,
        loss: RowLoss | Literal["token_mean_nll"] = "token_mean_nll",
        start: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """The weights after a short run on some rows."""
        size = min(self.config.batch_size, len(rows))
        return short_run(
            context,
            rows,
            num_steps=self.config.num_epochs * math.ceil(len(rows) / size),
            batch_size=size,
            learning_rate=self.config.learning_rate,
            name=f"toss.{name}",
            loss=loss,
            start=start,
        )

    def _read(self, context: StepContext, weights: Sequence[Tensor]) -> TokenTable:
        """NLL of every token of the upload under a reference."""
        with replaced_weights(context.parameters, weights):
            return read_tokens(context, context.rows[Role.USER])

    def state(self) -> dict[str, Tensor]:
        """Scores and masks."""
        return self.scores.state("scores") | {"kept": self.kept.values}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self.scores = TokenTable.from_state(state, "scores")
        self.kept = self.scores.with_values(state["kept"])
