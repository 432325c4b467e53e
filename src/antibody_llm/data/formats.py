"""Load training rows, prompts and refusals from whatever ``raw.py`` gives.

``rows.py`` lists the accepted formats. Every error names file, line, field and how to fix it; a file with several
bad rows names the first and counts the others.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..events import inform
from .files import iter_json_rows, read_text
from .problems import BadRow, RawRow, report, text_of
from .raw import Given, raw_rows
from .records import Message, Record
from .rows import check_trainable, row_content, row_format

MAX_BAD_ROWS = 10_000
"""Number of bad rows at which the reader stops looking for more."""


def load_records(source: Given, *, split: str = "train") -> list[Record]:
    """The training rows of ``source``; each ends with an assistant's completion and trains at least one.

    Args:
        source: A file, a data set, bytes or rows: see ``raw_rows``.
        split: The part of a data set to read; nothing else has parts.

    Raises:
        DataError: nothing there, or a row cannot be used. Nothing is skipped silently.
    """
    return _records(source, split=split, trainable=True)


def load_prompts(source: Given, *, split: str = "train") -> list[Record]:
    """The rows of ``source`` to ask a model: the completion may be missing, and is the reference where it is there."""
    return _records(source, split=split, trainable=False)


def load_refusals(path: str | Path, *, name: str | None = None) -> list[str]:
    """A list of refusals: one on each line of a .txt file, or JSON rows with ``refusal`` or ``completion``.

    Args:
        path: The file.
        name: What errors call it; by default its path.
    """
    path, name = Path(path), name or str(path)
    if path.suffix == ".txt":
        return [line.strip() for line in read_text(path, name).split("\n") if line.strip()]
    refusals: list[str] = []
    bad: list[tuple[int, BadRow]] = []
    for line, row in iter_json_rows(path, name):
        try:
            if isinstance(row, BadRow):
                raise row
            text = (row.get("refusal") or row.get("completion")) if isinstance(row, Mapping) else None
            if not isinstance(text, str) or not text.strip():
                raise BadRow("no refusal", 'no text in "refusal" or "completion". Add it, or remove the line.')
            refusals.append(text_of(text, "refusal" if row.get("refusal") else "completion").strip())
        except BadRow as problem:
            bad.append((line, problem))
    if bad:
        raise report(name, bad)
    return refusals


def fingerprint(records: list[Record]) -> str:
    """Identity of the rows' content and order (SHA-256, hex). A file that is only moved keeps it."""
    digest = sha256()
    for record in records:
        content = [_identity(message) for message in record.messages]
        whole = [record.row_id, record.template, content] + ([record.tools] if record.tools else [])
        digest.update(json.dumps(whole).encode() + b"\n")
    return digest.hexdigest()


def _identity(message: Message) -> list[Any]:
    """A message for the fingerprint. One that is no more than text has three parts: stored runs compare them."""
    plain = [message.role, message.content, message.trained]
    calls = [[call.name, call.arguments, call.call_id] for call in message.tool_calls]
    more = [message.reasoning, calls, message.tool_call_id, message.name]
    return plain + more if any(more) else plain


@dataclass(frozen=True, slots=True)
class ReadRow:
    """One row: its position (0-based), its line, what it was given as, and what was read of it; None if it passed."""

    row_id: int
    line: int
    raw: Any
    record: Record | None


class RowReader:
    """The rows of one source as records, one after another; all must have one format.

    Args:
        source: What records and errors call it.
        trainable: Whether each must end with an assistant's completion and train one.
    """

    def __init__(self, source: str, *, trainable: bool) -> None:
        self.source, self.trainable = source, trainable
        self.first: tuple[int, str] | None = None
        """Line and format of the first row."""
        self.bad: list[tuple[int, BadRow]] = []

    def read(self, row_id: int, line: int, row: Any) -> Record:
        """One row.

        Raises:
            BadRow: it cannot be used.
        """
        if isinstance(row, BadRow):
            raise row
        form = row_format(row)
        self.first = self.first or (line, form)
        if form != self.first[1]:
            raise BadRow(
                "mixed formats",
                f"a {form} row, but line {self.first[0]} is a {self.first[1]} row. Put each format into a file of its "
                "own.",
            )
        content = row_content(row, form=form)
        if self.trainable:
            check_trainable(content, form=form, row=row)
        return Record(row_id, content.messages, content.template, source=self.source, line=line, tools=content.tools)

    def records(self, rows: Iterable[RawRow], *, passing: Collection[str] = ()) -> Iterator[ReadRow]:
        """Yield every row that can be used, then report the others.

        Args:
            rows: Each with its line.
            passing: Kinds of ``BadRow`` that are no fault: such a row comes without a record.

        Raises:
            DataError: some cannot be used; after the last row, or after ``MAX_BAD_ROWS`` of them.
        """
        for row_id, (line, row) in enumerate(rows):
            try:
                record: Record | None = self.read(row_id, line, row)
            except BadRow as problem:
                if problem.kind not in passing:
                    self._refuse(line, problem)
                    continue
                record = None
            yield ReadRow(row_id, line, row, record)
        if self.bad:
            raise report(self.source, self.bad)

    def _refuse(self, line: int, problem: BadRow) -> None:
        self.bad.append((line, problem))
        if len(self.bad) == MAX_BAD_ROWS:
            raise report(self.source, self.bad)

    def say_format(self) -> None:
        """Report the format, where it is not one that the documentation asks for."""
        if self.first is not None and self.first[1] == "ShareGPT":
            inform(
                f"{self.source}: ShareGPT rows (conversations of from and value) are read as chats: human is user, gpt "
                "is assistant."
            )


def _records(source: Given, *, split: str, trainable: bool) -> list[Record]:
    rows = raw_rows(source, split=split)
    reader = RowReader(rows.name, trainable=trainable)
    records = [row.record for row in reader.records(rows) if row.record is not None]
    reader.say_format()
    return records
