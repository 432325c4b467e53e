"""A number for every trained token of some rows: read once, kept flat, and laid over a micro-batch when needed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ..data.records import TokenizedRow
from .completion import evaluating
from .microbatch import MicroBatch
from .ranks import all_reduce
from .reader import ModelReader


@dataclass(frozen=True, slots=True)
class TokenTable:
    """A number for every trained token of every row.

    Attributes:
        values: [sum of N_i], float32: row by row, and in a row through the tokens of its spans.
        bounds: Row id to [start, end) in ``values``.
    """

    values: Tensor
    bounds: Mapping[int, tuple[int, int]]

    def of(self, row: TokenizedRow) -> Tensor:
        """[N_i]: the numbers of one row."""
        start, end = self.bounds[row.row_id]
        return self.values[start:end]

    def over(self, micro: MicroBatch, trained: Tensor) -> Tensor:
        """[B, W]: the numbers where ``trained`` is true (``CompletionLogits.trained``), 0 elsewhere."""
        numbers = torch.cat([self.of(row) for row in micro.rows]).to(trained.device)
        return torch.zeros(trained.shape, device=trained.device).masked_scatter(trained, numbers)

    def with_values(self, values: Tensor) -> "TokenTable":
        """Other numbers for the same tokens."""
        return TokenTable(values, self.bounds)

    def state(self, name: str) -> dict[str, Tensor]:
        """The table as a checkpoint stores it."""
        rows = [(row_id, start, end) for row_id, (start, end) in self.bounds.items()]
        return {f"{name}.values": self.values, f"{name}.bounds": torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], name: str) -> "TokenTable":
        """The table that ``state`` stored under this name; an empty one where it stored none."""
        if f"{name}.values" not in state:
            return NO_TOKENS
        bounds = {row_id: (start, end) for row_id, start, end in state[f"{name}.bounds"].tolist()}
        return cls(state[f"{name}.values"], bounds)


NO_TOKENS = TokenTable(torch.zeros(0), {})


def num_trained(row: TokenizedRow) -> int:
    """N_i, the trained tokens of a row."""
    return sum(end - start for start, end in row.spans)


@torch.no_grad()
def read_tokens(
    reader: ModelReader, rows: Sequence[TokenizedRow], values: Callable[[MicroBatch], Tensor] | None = None
) -> TokenTable:
    """Read a number for every trained token of the rows, in evaluation mode; the rows are shared among the ranks.

    Args:
        reader: The model.
        rows: The rows; their ids differ.
        values: A function that gives the numbers of the trained tokens of a micro-batch, [sum of its N_i], row by row;
            by default the NLL of each, nats.
    """
    values = values or partial(_nll, reader)
    limits = [*pairwise(accumulate((num_trained(row) for row in rows), initial=0))]
    flat = torch.zeros(limits[-1][1] if limits else 0, device=reader.device)
    with evaluating(reader.model):
        for some, counted in reader.passes(rows):
            numbers = values(MicroBatch.of([rows[i] for i in some])).float()
            if not counted:
                continue
            for i, part in zip(some, numbers.split([num_trained(rows[i]) for i in some]), strict=True):
                flat[slice(*limits[i])] = part
    return TokenTable(all_reduce(flat), {row.row_id: limit for row, limit in zip(rows, limits, strict=True)})


def _nll(reader: ModelReader, micro: MicroBatch) -> Tensor:
    found = reader.completion_logits(micro)
    return found.nll[found.trained]
