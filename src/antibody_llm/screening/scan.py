"""One walk over an upload, in chunks: each row is checked, encoded and scored, and its numbers go into a table.

A few numbers per row stay in memory, and the texts of the rows that the report shows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..data.encode import RowError
from ..data.problems import BadRow, report
from ..data.records import Record, TokenizedRow
from ..errors import DataError
from .cache import row_digest
from .choice import LabelFirst
from .reader import EvidenceReader
from .report import Marked, MostSuspicious, ShownRow, marked
from .rows import Flag, RowTable
from .upload import Upload, UploadRow

CHUNK_ROWS, CHUNK_CHARACTERS = 2048, 8_000_000
"""Rows, and characters, that are in memory together."""


@dataclass(frozen=True)
class Scan:
    """The findings of a walk over an upload."""

    table: RowTable = field(default_factory=RowTable)
    """Every row's numbers."""
    suspects: MostSuspicious = field(default_factory=MostSuspicious)
    """The rows that the report shows."""
    answers: MostSuspicious = field(default_factory=MostSuspicious)
    """The rows that the report shows for their answers."""
    label_first: LabelFirst = field(default_factory=LabelFirst)
    """A sample of the unfamiliar rows."""

    def shown_answers(self) -> list[tuple[int, ShownRow, Marked]]:
        """The report's rows for their answers: line, row, and the text of each message in harmful and other parts."""
        return [
            (self.table.line(row.position), row, marked(row.turns, self.table.spans(row.position)))
            for row in self.answers.sorted()
        ]

    def shown(self, probability: Tensor | None, refusals: Sequence[str]) -> list[tuple[ShownRow, dict[str, Any], int]]:
        """The report's rows, each with its line of rows.jsonl and how often it occurs in the upload.

        Args:
            probability: P(harm) of the rows with evidence, as ``RowTable.rows`` takes it.
            refusals: The refusals, by number.
        """
        rows, times = self.suspects.sorted(), self.table.times()
        wanted = {row.position for row in rows}
        lines = {row["row_id"]: row for row in self.table.rows(probability, refusals) if row["row_id"] in wanted}
        return [(row, lines[row.position], int(times[row.position])) for row in rows]


@dataclass(frozen=True, slots=True)
class _Fresh:
    """A row that is to be read: its position in the table, its content, its tokens and their identity."""

    position: int
    record: Record
    encoded: TokenizedRow
    digest: bytes


def scan(upload: Upload, reader: EvidenceReader, advance: Callable[[float], None]) -> Scan:
    """Score every row of an upload.

    Args:
        upload: The rows.
        reader: How they are read.
        advance: Called with the number of rows done so far; part of a chunk counts in proportion.

    Raises:
        DataError: rows cannot be encoded (all of them are named), or the upload changed while it was read.
        TrainingError: what was read of a row is not finite.
    """
    found = Scan()
    advance(0)
    seen: dict[bytes, int] = {}
    refused: list[tuple[int, BadRow]] = []
    for chunk in _chunks(upload):
        done = len(found.table)
        fresh = list(_fresh(chunk, reader, found.table, seen, refused))
        if refused:
            continue  # all of them are named, and nothing more is read
        _score(fresh, reader, found, lambda part: advance(done + part * len(chunk)))  # noqa: B023
        advance(len(found.table))
    if refused:
        raise report(upload.name, refused)
    if len(found.table) != upload.num_rows:
        raise DataError(f"{upload.name}: it changed while it was read. Run again once nothing writes to it.")
    return found


def _fresh(
    chunk: Sequence[UploadRow],
    reader: EvidenceReader,
    table: RowTable,
    seen: dict[bytes, int],
    refused: list[tuple[int, BadRow]],
) -> Iterator[_Fresh]:
    """Append the rows of a chunk to ``table``, and yield those that are to be read.

    Args:
        chunk: The rows.
        reader: How they are encoded.
        table: Gets a line for each row that can be encoded.
        seen: Positions by digest of the rows that came before; gets those of the new ones.
        refused: Gets line and fault of the rows that cannot be encoded.
    """
    for row in chunk:
        if row.record is None:
            table.append(row.line, [Flag.EMPTY])
            continue
        try:
            encoded = reader.encoded(row.record)
        except RowError as error:
            refused.append((row.line, error.problem))
            continue
        spells = [Flag.CONTROL_TOKENS] if reader.renderer.spelled(row.record) is not None else []
        if encoded is None:
            table.append(row.line, [Flag.TOO_LONG, *spells])
            continue
        digest = row_digest(encoded)
        if (first := seen.get(digest)) is not None:
            table.append(row.line, [Flag.DUPLICATE, *spells], first=first)
            continue
        position = seen[digest] = table.append(row.line, spells)
        yield _Fresh(position, row.record, encoded, digest)


def _score(rows: Sequence[_Fresh], reader: EvidenceReader, scanned: Scan, advance: Callable[[float], None]) -> None:
    """Read the rows and write down what was found."""
    encoded, part = [row.encoded for row in rows], 1.0 if reader.answers is None else 0.5
    found = reader.read(encoded, [row.record.where for row in rows], lambda done: advance(part * done))
    for row, (evidence, nearest, distance), unfamiliar in zip(rows, found, reader.unfamiliar(found), strict=True):
        scanned.table.set(row.position, evidence, nearest, reader.relative(distance), unfamiliar=unfamiliar)
        scanned.suspects.offer(row.position, evidence, row.record)
        if unfamiliar:
            scanned.label_first.offer(row.position, row.digest, evidence, row.record)
    if reader.answers is not None:
        answers = reader.answers.read(encoded, lambda done: advance(part + (1 - part) * done))
        for row, answer in zip(rows, answers, strict=True):
            scanned.table.set_answer(row.position, answer)
            if answer.spans:
                scanned.answers.offer(row.position, answer.evidence, row.record)


def _chunks(upload: Upload) -> Iterator[list[UploadRow]]:
    chunk: list[UploadRow] = []
    size = 0
    for row in upload:
        chunk.append(row)
        size += 0 if row.record is None else sum(len(message.content) for message in row.record.messages)
        if len(chunk) == CHUNK_ROWS or size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
