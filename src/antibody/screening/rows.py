"""What is known of each row of an upload, in a few numbers, and the two files that it is written to.

row_id           position in the upload, 0-based
line             of the file, 1-based; of a data set the position
evidence         high means harm; null where the row was not read
probability      P(harm), 0 to 1; null without evidence or without anchors
nearest_refusal  the likeliest of the refusals scored; null where none was scored
flags            of "duplicate", "empty", "too long"
"""

import json
import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ..errors import OutputError

ROWS_JSONL, ROWS_PARQUET = "rows.jsonl", "rows.parquet"
ROWS_PER_GROUP = 10_000
SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.int64(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("evidence", pa.float64()),
        pa.field("probability", pa.float64()),
        pa.field("nearest_refusal", pa.string()),
        pa.field("flags", pa.list_(pa.string()), nullable=False),
    ]
)


class Flag(StrEnum):
    """What is odd about a row."""

    DUPLICATE = "duplicate"
    """Another row before it reads the same; it has that one's numbers."""
    EMPTY = "empty"
    """No prompt, or nothing to train on."""
    TOO_LONG = "too long"
    """Longer than the model's context; where the evidence is made of refusals, with one in place of its answer too."""


class RowTable:
    """A row's numbers, 29 bytes each. Rows are appended in the upload's order."""

    def __init__(self) -> None:
        self._line = array("q")
        self._first = array("q")  # the row itself, or the one that it repeats
        self._evidence = array("d")
        self._nearest = array("i")
        self._flag = array("b")  # 1 + the flag's number; 0 none

    def __len__(self) -> int:
        return len(self._line)

    def append(self, line: int, *, flag: Flag | None = None, first: int | None = None) -> int:
        """One more row, without evidence yet; returns its position.

        Args:
            line: Of the upload.
            flag: At most one can hold: a row that repeats a flagged one is not compared.
            first: Of a duplicate, the row that it repeats.
        """
        position = len(self)
        self._line.append(line)
        self._first.append(position if first is None else first)
        self._evidence.append(math.nan)
        self._nearest.append(-1)
        self._flag.append(0 if flag is None else 1 + _FLAGS.index(flag))
        return position

    def set(self, position: int, evidence: float, nearest: int) -> None:
        """What was read of a row that is no duplicate."""
        self._evidence[position], self._nearest[position] = evidence, nearest

    def num(self, flag: Flag) -> int:
        """How many rows bear the flag."""
        return self._flag.count(1 + _FLAGS.index(flag))

    def scored(self) -> tuple[Tensor, Tensor, Tensor]:
        """(position [n] int64, evidence [n] float64, repeated [n] bool) of all rows with evidence."""
        if not len(self):
            return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64), torch.zeros(0).bool()
        first = torch.frombuffer(self._first, dtype=torch.int64)
        evidence = torch.frombuffer(self._evidence, dtype=torch.float64)[first]
        position = (~evidence.isnan()).nonzero()[:, 0]
        return position, evidence[position], first[position] != position

    def times(self) -> Tensor:
        """[rows], int64: how often each row stands in the upload; 0 of one that repeats another."""
        first = torch.frombuffer(self._first, dtype=torch.int64)
        return torch.bincount(first, minlength=len(self))

    def rows(self, probability: Tensor | None, refusals: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Every row as plain values.

        Args:
            probability: [n], of the rows with evidence, in order; None where there is none.
            refusals: By number.
        """
        told = None if probability is None else iter(probability.tolist())
        for position, (line, first, flag) in enumerate(zip(self._line, self._first, self._flag, strict=True)):
            evidence, nearest = self._evidence[first], self._nearest[first]
            read = not math.isnan(evidence)
            yield {
                "row_id": position,
                "line": line,
                "evidence": evidence if read else None,
                "probability": next(told) if read and told is not None else None,
                "nearest_refusal": refusals[nearest] if nearest >= 0 else None,
                "flags": [str(_FLAGS[flag - 1])] if flag else [],
            }


_FLAGS = tuple(Flag)


def write_rows(folder: Path, rows: Callable[[], Iterator[dict[str, Any]]]) -> None:
    """rows.jsonl and rows.parquet; each whole or not at all, a group of rows in memory at a time.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    _whole(folder / ROWS_JSONL, lambda file: _write_jsonl(file, rows()))
    _whole(folder / ROWS_PARQUET, lambda file: _write_parquet(file, rows()))


def _write_jsonl(file: Path, rows: Iterator[dict[str, Any]]) -> None:
    with file.open("w", encoding="utf-8") as opened:
        opened.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_parquet(file: Path, rows: Iterator[dict[str, Any]]) -> None:
    with pq.ParquetWriter(file, SCHEMA) as writer:
        group: list[dict[str, Any]] = []
        for row in rows:
            group.append(row)
            if len(group) == ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(group, SCHEMA))
                group = []
        writer.write_table(pa.Table.from_pylist(group, SCHEMA))


def _whole(file: Path, write: Callable[[Path], None]) -> None:
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        write(temporary)
        temporary.replace(file)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputError(
                f"{file}: cannot be written ({error.strerror or error}). Free some space or choose another --output."
            ) from error
        raise
