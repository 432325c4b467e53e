"""An upload as a stream of rows: JSON Lines files are read a row at a time and never held in memory.

Whatever could be trained on is read as for training, and what is wrong with a row is reported in the same words. Only
a row whose prompt or answer is blank passes as empty instead of stopping everything: there is nothing in it to judge.
"""

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from ..data.formats import RowReader, fingerprint
from ..data.raw import Given, RawRows, raw_rows
from ..data.records import Record
from ..errors import DataError

EMPTY_KINDS = ("empty prompt", "empty instruction", "empty completion")
"""Kinds of ``BadRow`` that are no fault here: the row is empty."""


@dataclass(frozen=True, slots=True)
class UploadRow:
    """One row: its position (0-based), its line, and its content; None where it is empty."""

    row_id: int
    line: int
    record: Record | None


@dataclass(frozen=True)
class Upload:
    """Rows that can be gone through again and again.

    Attributes:
        rows: Where they come from.
        num_rows: How many there are.
        sha256: Identity of their content, order and lines.
    """

    rows: RawRows = field(repr=False)
    num_rows: int
    sha256: str

    @property
    def name(self) -> str:
        """What errors call them."""
        return self.rows.name

    def __iter__(self) -> Iterator[UploadRow]:
        return _read(self.rows, RowReader(self.name, trainable=True))


def open_upload(given: Given) -> Upload:
    """Read it once, to the end, so that what is wrong with it is reported before anything else is done.

    Args:
        given: A file, a data set, bytes or rows: see ``data.raw.raw_rows``.

    Raises:
        DataError: nothing there, or a row cannot be used; the first bad one in full, and how many more there are.
    """
    if isinstance(given, str | Path) and stat.S_ISFIFO(_mode(given)):
        raise DataError(f"{given}: a pipe, and an upload is read more than once. Write it to a file first.")
    rows = raw_rows(given)
    digest, num_rows = sha256(), 0
    reader = RowReader(rows.name, trainable=True)
    for row in _read(rows, reader):
        # With its line: a stored result that names other lines than the file has is not this file's.
        digest.update(f"{row.line} {'' if row.record is None else fingerprint([row.record])}\n".encode())
        num_rows += 1
    reader.say_format()
    return Upload(rows, num_rows, digest.hexdigest())


def _mode(source: str | Path) -> int:
    try:
        return Path(source).stat().st_mode
    except (OSError, ValueError):
        return 0


def _read(rows: RawRows, reader: RowReader) -> Iterator[UploadRow]:
    """The rows, and in ``reader`` what it saw of them."""
    for row in reader.records(rows, passing=EMPTY_KINDS):
        record = row.record
        if record is not None and not any(m.content.strip() for m in record.messages if m.role != "assistant"):
            record = None  # a chat's prompt; the other formats have reported theirs above
        yield UploadRow(row.row_id, row.line, record)
