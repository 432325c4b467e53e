"""Suspicious rows of a job: numbers for whoever may see them, texts for an operator who asks, and the audit log knows.

A customer sees the rows that screening reported to them, as ``row_report`` had it. An operator sees every row of the
screening. No text is shown before an operator reveals those of one page.
"""

import heapq
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from ...errors import DataError
from ...text import cut
from ..auth import Principal
from ..context import Context
from ..database.tables import Audit, File, Job
from ..numbering import buffered, numbered
from .visits import Visitor

MOST_ROWS = 1000
ROWS_PER_PAGE = 25
MAX_TEXT = 4000
"""Characters that are shown of one message."""


@dataclass(frozen=True)
class Row:
    """A row of the upload."""

    line: int
    probability: float | None
    """P(harm); None: there is none."""
    evidence: float | None
    flags: Sequence[str]


def suspicious(context: Context, visitor: Visitor, job: Job) -> list[Row]:
    """Rows by suspicion, at most ``MOST_ROWS``."""
    blob = job.private.get("rows")
    if visitor.is_operator and isinstance(blob, str):
        try:
            return _screened(context, blob)
        except FileNotFoundError:
            pass
    return [_row(entry) for entry in (job.safety.get("screening") or {}).get("rows", ())]


def _screened(context: Context, blob: str) -> list[Row]:
    """The most suspicious rows of a screening, however many it has."""
    with context.blobs.open(blob) as file:
        return heapq.nlargest(MOST_ROWS, (_row(json.loads(line)) for line in file), key=_suspicion)


def _row(entry: dict[str, Any]) -> Row:
    return Row(entry["line"], entry.get("probability"), entry.get("evidence"), entry.get("flags") or ())


def _suspicion(row: Row) -> tuple[float, float, int]:
    low = float("-inf")
    return (
        low if row.probability is None else row.probability,
        low if row.evidence is None else row.evidence,
        -row.line,
    )


Text = Sequence[tuple[str, str]]
"""Who speaks, and what."""


def reveal(context: Context, operator: Principal, job: Job, lines: Sequence[int]) -> dict[int, Text]:
    """The texts of some lines of a job's training file. The audit log records who has read them, before they are read.

    Args:
        context: The server.
        operator: Who reads.
        job: The job.
        lines: 1-based.

    Returns:
        The messages of each line; of a line that the file lacks, nothing.
    """
    with context.database.write() as session:  # and no longer: a long file would keep every other writer waiting
        session.add(
            Audit(
                created_at=context.database.now(session),
                actor=operator.key_id,
                action="rows.revealed",
                subject=job.id,
                project_id=job.project_id,
                data={"file": job.training_file, "lines": list(lines)},
            )
        )
        file = session.scalars(select(File).where(File.id == job.training_file, ~File.purged)).first()
        blob = None if file is None else file.blob
    return {} if blob is None else _texts(context, blob, set(lines))


def _texts(context: Context, blob: str, lines: set[int]) -> dict[int, Text]:
    found: dict[int, Text] = {}
    with suppress(FileNotFoundError, DataError), context.blobs.open(blob) as stored:
        for number, row in _rows(buffered(stored)):
            if number in lines:
                found[number] = _messages(row)
            if len(found) == len(lines):
                break
    return found


def _rows(file: io.BufferedReader) -> Iterator[tuple[int, Any]]:
    """Numbered rows; those of JSON Lines are not read yet, since of millions a page shows a few."""
    return numbered(file) if file.peek(1).lstrip()[:1] in (b"[", b"") else enumerate(file, start=1)


def _messages(line: Any) -> Text:
    try:
        row = json.loads(line) if isinstance(line, bytes) else line
        given = row.get("messages")
        if isinstance(given, list) and all(isinstance(message, dict) for message in given):
            return [_message(message) for message in given]
        return [(str(name), _said(value)) for name, value in row.items()]
    except (ValueError, AttributeError, RecursionError):
        text = line.decode("utf-8", "replace") if isinstance(line, bytes) else str(line)
        return [("row", cut(text, MAX_TEXT))]


def _message(message: dict[str, Any]) -> tuple[str, str]:
    content = message.get("content")
    rest = {name: value for name, value in message.items() if name not in ("role", "content")}
    text = _said(content) if content is not None else ""
    return str(message.get("role", "?")), text + (f" {_said(rest)}" if rest else "")


def _said(value: Any) -> str:
    return cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), MAX_TEXT)
