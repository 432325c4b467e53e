"""Which rows belong to which optimiser step, micro-batch and rank.

The unit is the optimiser step: it has a global batch of B = micro-batch size x accumulation x ranks rows, in an order
that depends on the seed alone. How it is cut into micro-batches and ranks changes nothing else.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.records import TokenizedRow
from ..likelihood.microbatch import MicroBatch, StepBatch


@dataclass(frozen=True, slots=True)
class Grid:
    """How a step is cut: rows per forward pass, forward passes per step, ranks, and which rank this is."""

    micro_batch_size: int
    accumulation: int = 1
    num_ranks: int = 1
    rank: int = 0

    @property
    def step_size(self) -> int:
        """B, the rows of a full optimiser step over all ranks."""
        return self.micro_batch_size * self.accumulation * self.num_ranks

    def num_micro_batches(self, num_rows: int) -> int:
        """Forward passes that every rank makes for a step of ``num_rows`` rows."""
        return -(-num_rows // (self.micro_batch_size * self.num_ranks))

    def cut(self, num_rows: int) -> list[list[tuple[int, bool]]]:
        """The (position, counted) of the rows of each micro-batch of this rank, in a step of ``num_rows`` rows."""
        size = self.micro_batch_size
        cuts = []
        for micro in range(self.num_micro_batches(num_rows)):
            start = (micro * self.num_ranks + self.rank) * size
            slots = [(position, True) for position in range(start, min(start + size, num_rows))]
            cuts.append(slots or [(start % num_rows, False)])
        return cuts


@lru_cache(maxsize=16)
def _order(num_rows: int, *key: int) -> np.ndarray:
    return np.random.default_rng(key).permutation(num_rows)


@dataclass(frozen=True, slots=True)
class Slot:
    """A row that the sampler asks the data set for, and its place in the step."""

    index: int
    counted: bool
    position: int


class StepSampler(Sampler[list[Slot]]):
    """Yields the micro-batches of one epoch over the main data set; the last step may be smaller, never padded."""

    def __init__(self, num_rows: int, grid: Grid, seed: int) -> None:
        self.num_rows, self.grid, self.seed = num_rows, grid, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is used; the Trainer calls this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Slot]]:
        order = _order(self.num_rows, self.seed, self.epoch)
        for start in range(0, self.num_rows, self.grid.step_size):
            step = order[start : start + self.grid.step_size]
            for cut in self.grid.cut(len(step)):
                yield [Slot(int(step[position]), counted, position) for position, counted in cut]

    def __len__(self) -> int:
        full, rest = divmod(self.num_rows, self.grid.step_size)
        return full * self.grid.accumulation + self.grid.num_micro_batches(rest)


def rows_of_step(num_rows: int, grid: Grid, seed: int, step: int) -> list[int]:
    """Indices of the main rows of optimiser step ``step`` (0-based), over all ranks."""
    epoch, within = divmod(step, -(-num_rows // grid.step_size))
    start = within * grid.step_size
    return [int(index) for index in _order(num_rows, seed, epoch)[start : start + grid.step_size]]


class _Rows(Dataset[tuple[TokenizedRow, Slot]]):
    def __init__(self, rows: Sequence[TokenizedRow]) -> None:
        self.rows = rows

    def __getitem__(self, slot: Slot) -> tuple[TokenizedRow, Slot]:
        return self.rows[slot.index], slot

    def __len__(self) -> int:
        return len(self.rows)


def _collate(items: list[tuple[TokenizedRow, Slot]]) -> MicroBatch:
    return MicroBatch(
        tuple(row for row, _ in items),
        tuple(slot.counted for _, slot in items),
        tuple(slot.position for _, slot in items),
    )


class StepLoader(DataLoader[MicroBatch]):
    """A plain loader of micro-batches (never prepared by accelerate: the grid already knows its rank)."""

    def __init__(self, rows: Sequence[TokenizedRow], grid: Grid, seed: int) -> None:
        super().__init__(_Rows(rows), batch_sampler=StepSampler(len(rows), grid, seed), collate_fn=_collate)  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to the sampler; the Trainer calls this, and after skipping batches the sampler's own."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


@dataclass(frozen=True)
class RoleStream:
    """Rows of a further role (harmful, refusal, benign): an endless stream, shuffled again at each pass.

    The batch of a step is a function of (seed, role, step) alone, so there is no position to save.
    ``size`` is its number of rows over all ranks.
    """

    role: str
    rows: Sequence[TokenizedRow]
    grid: Grid
    seed: int
    size: int

    def at(self, step: int) -> StepBatch:
        """The batch of optimiser step ``step`` (0-based)."""
        size, num_rows = self.size, len(self.rows)
        salt = zlib.crc32(self.role.encode())

        def row(position: int) -> TokenizedRow:
            passes, offset = divmod(step * size + position, num_rows)
            return self.rows[int(_order(num_rows, self.seed, salt, passes)[offset])]

        micro_batches = tuple(
            MicroBatch(
                tuple(row(position) for position, _ in cut),
                tuple(counted for _, counted in cut),
                tuple(position for position, _ in cut),
            )
            for cut in self.grid.cut(size)
        )
        return StepBatch(micro_batches, size)
