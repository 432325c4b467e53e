"""Suspicious rows of a job: numbers for whoever may see them, texts for an operator who asks, and the audit log knows.

A customer sees the rows that screening reported to them, as ``row_report`` had it. An operator sees every row of the
screening. No text is shown before an operator reveals those of one page.
"""

import heapq
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from ...text import cut
from ..auth import Principal
from ..context import Context
from ..database.tables import Audit, File, Job
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


def reveal(
    context: Context, session: Session, operator: Principal, job: Job, lines: Sequence[int], now: float
) -> dict[int, Text]:
    """The texts of some lines of a job's training file. The audit log records who has read them, before they are read.

    Args:
        context: The server.
        session: A session that writes.
        operator: Who reads.
        job: The job.
        lines: 1-based.
        now: Seconds since 1970.

    Returns:
        The messages of each line; of a line that the file lacks, nothing.
    """
    session.add(
        Audit(
            created_at=now,
            actor=operator.key_id,
            action="rows.revealed",
            subject=job.id,
            project_id=job.project_id,
            data={"file": job.training_file, "lines": list(lines)},
        )
    )
    session.flush()
    file = session.scalars(select(File).where(File.id == job.training_file, ~File.purged)).first()
    return {} if file is None else _texts(context, file.blob, set(lines))


def _texts(context: Context, blob: str, lines: set[int]) -> dict[int, Text]:
    found: dict[int, Text] = {}
    try:
        with context.blobs.open(blob) as file:
            for number, line in enumerate(file, start=1):
                if number in lines:
                    found[number] = _messages(line)
                if len(found) == len(lines):
                    break
    except FileNotFoundError:
        pass
    return found


def _messages(line: bytes) -> Text:
    try:
        row = json.loads(line)
        given = row.get("messages")
        if isinstance(given, list) and all(isinstance(message, dict) for message in given):
            return [_message(message) for message in given]
        return [(str(name), _said(value)) for name, value in row.items()]
    except (ValueError, AttributeError, RecursionError):
        return [("row", cut(line.decode("utf-8", "replace"), MAX_TEXT))]


def _message(message: dict[str, Any]) -> tuple[str, str]:
    content = message.get("content")
    rest = {name: value for name, value in message.items() if name not in ("role", "content")}
    text = _said(content) if content is not None else ""
    return str(message.get("role", "?")), text + (f" {_said(rest)}" if rest else "")


def _said(value: Any) -> str:
    return cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), MAX_TEXT)
