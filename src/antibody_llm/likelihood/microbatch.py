"""The rows of a forward pass, and the forward passes of an optimiser step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..data.records import TokenizedRow


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The rows of one forward pass.

    Attributes:
        rows: The rows, at least one.
        counted: False for a row that is repeated only because a rank would have none; its weight is 0, and it is
            neither counted nor logged.
        positions: Each row's place in the step's global batch, 0 <= position < B.
    """

    rows: tuple[TokenizedRow, ...]
    counted: tuple[bool, ...]
    positions: tuple[int, ...]

    @classmethod
    def of(cls, rows: Sequence[TokenizedRow]) -> "MicroBatch":
        """One micro-batch of all rows, each counted, in their order."""
        return cls(tuple(rows), (True,) * len(rows), tuple(range(len(rows))))


@dataclass(frozen=True, slots=True)
class StepBatch:
    """This rank's share of the rows of one optimiser step. ``num_rows`` counts over all ranks."""

    micro_batches: tuple[MicroBatch, ...]
    num_rows: int

    @classmethod
    def of(cls, rows: Sequence[TokenizedRow], size: int | None = None) -> "StepBatch":
        """A step whose rows every rank takes, ``size`` in each forward pass; None puts all in one."""
        size = size or len(rows)
        parts = (rows[start : start + size] for start in range(0, len(rows), size))
        return cls(tuple(MicroBatch.of(part) for part in parts), len(rows))

    def with_completions(self, rows: Sequence[TokenizedRow]) -> "StepBatch":
        """A step with the same grid of micro-batches and other rows in it, in the order of ``self.rows()``."""
        fresh = iter(rows)
        return StepBatch(
            tuple(
                MicroBatch(tuple(next(fresh) for _ in micro.rows), micro.counted, micro.positions)
                for micro in self.micro_batches
            ),
            self.num_rows,
        )

    def rows(self) -> Iterator[tuple[TokenizedRow, int]]:
        """Each row of this rank with its position in the global batch."""
        for micro in self.micro_batches:
            yield from zip(micro.rows, micro.positions, strict=True)
