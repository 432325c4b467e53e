"""What a model predicts at some tokens of some rows, read once: its likeliest tokens and their probabilities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.records import TokenizedRow
from ..primitives.divergence import coarse_log_probs
from .completion import evaluating
from .microbatch import MicroBatch
from .ranks import all_reduce, num_ranks
from .reader import ModelReader
from .tokens import TokenTable


@dataclass(frozen=True)
class FrozenPredictions:
    """Predictions at M tokens.

    Attributes:
        tokens: [M, k], int64: the k likeliest tokens.
        log_p: [M, k + 1], float32: their log-probabilities, and that of all others together.
        place: [trained tokens of the table], int64: which prediction is a token's; -1 where none was kept.
    """

    tokens: Tensor
    log_p: Tensor
    place: Tensor

    def of(self, table: TokenTable, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """(tokens, log_p) at the kept tokens of a micro-batch, row by row.

        Args:
            table: Any table of the rows that the predictions were read of.
            micro: The rows.
        """
        places = torch.cat([self.place[slice(*table.bounds[row.row_id])] for row in micro.rows])
        places = places[places >= 0]
        return self.tokens[places], self.log_p[places]

    def state(self) -> dict[str, Tensor]:
        """The predictions as a checkpoint stores them."""
        return {"frozen.tokens": self.tokens, "frozen.log_p": self.log_p, "frozen.place": self.place}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "FrozenPredictions":
        """The predictions that ``state`` stored; none where it stored none."""
        if "frozen.tokens" not in state:
            return NO_PREDICTIONS
        return cls(state["frozen.tokens"], state["frozen.log_p"], state["frozen.place"])


NO_PREDICTIONS = FrozenPredictions(torch.zeros(0, 0, dtype=torch.int64), torch.zeros(0, 1), torch.zeros(0).long())


@torch.no_grad()
def read_predictions(
    reader: ModelReader, rows: Sequence[TokenizedRow], wanted: TokenTable, num_tokens: int
) -> FrozenPredictions:
    """Read what the model predicts at the wanted tokens, in evaluation mode; the rows are shared among the ranks.

    Args:
        reader: The model.
        rows: The rows of the table.
        wanted: Above 0 where a prediction is kept.
        num_tokens: k; at most the vocabulary but one.
    """
    kept = wanted.values.to(reader.device) > 0
    place = torch.where(kept, kept.cumsum(dim=0) - 1, -1)
    num = int(kept.sum())
    tokens = torch.zeros(num, num_tokens, dtype=torch.int64, device=reader.device)
    log_p = torch.zeros(num, num_tokens + 1, device=reader.device)
    some = [row for row in rows if bool(kept[slice(*wanted.bounds[row.row_id])].any())]
    order = sorted(some, key=lambda row: (len(row.input_ids), row.row_id))[reader.rank :: num_ranks()]
    with evaluating(reader.model):
        for begin in range(0, len(order), reader.batch_size):
            micro = MicroBatch.of(order[begin : begin + reader.batch_size])
            found = reader.completion_logits(micro)
            logits = found.logits[found.trained]
            places = torch.cat([place[slice(*wanted.bounds[row.row_id])] for row in micro.rows])
            logits, places = logits[places >= 0].float(), places[places >= 0]
            likeliest = logits.topk(num_tokens, dim=1).indices
            tokens[places], log_p[places] = likeliest, coarse_log_probs(logits, likeliest)
    return FrozenPredictions(all_reduce(tokens), all_reduce(log_p), place)
