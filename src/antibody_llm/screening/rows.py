"""The table of an upload's rows, a few numbers each, and the two files that it is written to.

row_id           position in the upload, 0-based
line             in the file, 1-based; in a data set the position
evidence         high means harm; null where the row was not read
probability      P(harm), 0 to 1; null without evidence or anchors, for an unfamiliar row, and where the verdict is
                 "cannot tell": it follows from the upload's harmful share
nearest_refusal  the likeliest of the refusals scored; null where none was scored
distance         from the model's anchors; 1 is what 3 harmful anchors in 100 exceed. Null where it was not read
answer_evidence  high means that an answer holds harm; null where answers were not read
answer_probability    P(an answer holds harm), 0 to 1; null where answers were not read
spans            [answer, first character, first character behind] of what reads as harm; which of the row's trained
                 answers counts from 0
flags            any of ``Flag``, in its order
"""

import json
import math
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ..files import whole
from .answers import AnswerFound, Span

ROWS_JSONL, ROWS_PARQUET = "rows.jsonl", "rows.parquet"
ROWS_PER_GROUP = 10_000
SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.int64(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("evidence", pa.float64()),
        pa.field("probability", pa.float64()),
        pa.field("nearest_refusal", pa.string()),
        pa.field("distance", pa.float64()),
        pa.field("answer_evidence", pa.float64()),
        pa.field("answer_probability", pa.float64()),
        pa.field("spans", pa.list_(pa.list_(pa.int64())), nullable=False),
        pa.field("flags", pa.list_(pa.string()), nullable=False),
    ]
)


class Flag(StrEnum):
    """Something odd about a row."""

    DUPLICATE = "duplicate"
    """An earlier row reads the same; this one has its numbers."""
    EMPTY = "empty"
    """No prompt, or nothing to train on."""
    TOO_LONG = "too long"
    """Longer than the context, as given or (for measures that score refusals) with a refusal as the answer."""
    UNFAMILIAR = "unfamiliar"
    """The row is unlike every anchor, so that its evidence says nothing (screening/familiarity.py)."""
    CONTROL_TOKENS = "control tokens"
    """The row spells control tokens of the chat template; they were read as text."""


class RowTable:
    """A row's numbers, 37 bytes each, and the spans of rows that have some. Rows are appended in the upload's order."""

    def __init__(self) -> None:
        self._line = array("q")
        self._first = array("q")  # the row itself, or the one that it repeats
        self._evidence = array("d")
        self._nearest = array("i")
        self._distance = array("f")
        self._answer = array("f")
        self._spans: dict[int, tuple[Span, ...]] = {}
        self._flags = array("B")  # a bit each, by ``_BIT``

    def __len__(self) -> int:
        return len(self._line)

    def append(self, line: int, flags: Collection[Flag] = (), *, first: int | None = None) -> int:
        """Append a row, without evidence yet, and return its position.

        Args:
            line: The row's line in the upload.
            flags: What is odd about it.
            first: The position of the row that it repeats; None for a row that repeats none.
        """
        position = len(self)
        self._line.append(line)
        self._first.append(position if first is None else first)
        self._evidence.append(math.nan)
        self._nearest.append(-1)
        self._distance.append(math.nan)
        self._answer.append(math.nan)
        self._flags.append(sum(_BIT[flag] for flag in set(flags)))
        return position

    def set(
        self, position: int, evidence: float, nearest: int, distance: float | None = None, *, unfamiliar: bool = False
    ) -> None:
        """Store what was read of a row that repeats none; its duplicates share the numbers, and are as unfamiliar."""
        self._evidence[position], self._nearest[position] = evidence, nearest
        if distance is not None:
            self._distance[position] = distance
        if unfamiliar:
            self._flags[position] |= _BIT[Flag.UNFAMILIAR]

    def set_answer(self, position: int, found: AnswerFound) -> None:
        """Store what was read of the answers of a row that repeats none; its duplicates share it."""
        self._answer[position] = found.evidence
        if found.spans:
            self._spans[position] = found.spans

    def answers(self) -> tuple[Tensor, Tensor]:
        """All rows whose answers were read: evidence [n], float32, and whether each is a duplicate [n] bool."""
        if not len(self):
            return torch.zeros(0), torch.zeros(0).bool()
        first = torch.frombuffer(self._first, dtype=torch.int64)
        evidence = torch.frombuffer(self._answer, dtype=torch.float32)[first]
        read = (~evidence.isnan()).nonzero()[:, 0]
        return evidence[read], first[read] != read

    def num_with_spans(self) -> int:
        """How many distinct rows have a span."""
        return len(self._spans)

    def spans(self, position: int) -> tuple[Span, ...]:
        """What reads as harm in the answers of the row at ``position``."""
        return self._spans.get(position, ())

    def num(self, flag: Flag) -> int:
        """How many rows have the flag."""
        return int(((self._all_flags() & _BIT[flag]) != 0).sum())

    def _all_flags(self) -> Tensor:
        """The flags of every row as bits, [rows], uint8."""
        if not len(self):
            return torch.zeros(0, dtype=torch.uint8)
        own, first = torch.frombuffer(self._flags, dtype=torch.uint8), torch.frombuffer(self._first, dtype=torch.int64)
        return own | (own[first] & _BIT[Flag.UNFAMILIAR])

    def scored(self) -> tuple[Tensor, Tensor, Tensor]:
        """All rows with evidence: position [n] int64, evidence [n] float64, whether it is a duplicate [n] bool."""
        if not len(self):
            return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64), torch.zeros(0).bool()
        first = torch.frombuffer(self._first, dtype=torch.int64)
        evidence = torch.frombuffer(self._evidence, dtype=torch.float64)[first]
        position = (~evidence.isnan()).nonzero()[:, 0]
        return position, evidence[position], first[position] != position

    def unfamiliar(self) -> Tensor:
        """Whether each of the rows that ``scored`` gives is unfamiliar: [n], bool."""
        return (self._all_flags()[self.scored()[0]] & _BIT[Flag.UNFAMILIAR]) != 0

    def num_far(self) -> int:
        """How many rows, duplicates included, are farther from the anchors than 1."""
        if not len(self):
            return 0
        first = torch.frombuffer(self._first, dtype=torch.int64)
        return int((torch.frombuffer(self._distance, dtype=torch.float32)[first] > 1).sum())

    def line(self, position: int) -> int:
        """The line of the row at ``position``."""
        return self._line[position]

    def times(self) -> Tensor:
        """How often each row occurs in the upload, 0 for one that repeats another: [rows], int64."""
        first = torch.frombuffer(self._first, dtype=torch.int64)
        return torch.bincount(first, minlength=len(self))

    def rows(
        self, probability: Tensor | None, refusals: Sequence[str], answers: Tensor | None = None
    ) -> Iterator[dict[str, Any]]:
        """Every row as plain values.

        Args:
            probability: [n], P(harm) of the rows with evidence, in order, NaN where unknown; None without anchors.
            refusals: The refusals, by number.
            answers: [m], P(harm) of the answers that were read, in order; None where none were.
        """
        said = iter(()) if answers is None else iter(answers.tolist())
        given = None if probability is None else iter(probability.tolist())
        for position, (line, first, own) in enumerate(zip(self._line, self._first, self._flags, strict=True)):
            evidence, nearest, distance = self._evidence[first], self._nearest[first], self._distance[first]
            read = not math.isnan(evidence)
            harm = next(given) if read and given is not None else math.nan
            answer = self._answer[first]
            flags = own | (self._flags[first] & _BIT[Flag.UNFAMILIAR])
            yield {
                "row_id": position,
                "line": line,
                "evidence": evidence if read else None,
                "probability": None if math.isnan(harm) else harm,
                "nearest_refusal": refusals[nearest] if nearest >= 0 else None,
                "distance": None if math.isnan(distance) else distance,
                "answer_evidence": None if math.isnan(answer) else answer,
                "answer_probability": None if math.isnan(answer) else next(said, None),
                "spans": [list(span) for span in self._spans.get(first, ())],
                "flags": [str(flag) for flag in Flag if flags & _BIT[flag]],
            }


_BIT = {flag: 1 << number for number, flag in enumerate(Flag)}


def write_rows(folder: Path, rows: Callable[[], Iterator[dict[str, Any]]]) -> None:
    """Write rows.jsonl and rows.parquet, each whole or not at all, with a group of rows in memory at a time.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    for name, write in ((ROWS_JSONL, _write_jsonl), (ROWS_PARQUET, _write_parquet)):
        with whole(folder / name) as file:
            write(file, rows())


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
