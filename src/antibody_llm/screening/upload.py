"""An upload as a stream of rows: JSON Lines files are read a row at a time and never held in memory.

Whatever could be trained on is read as for training, and what is wrong with a row is reported in the same words. Only
a row whose prompt or answer is blank passes as empty instead of stopping everything: there is nothing in it to judge.
"""

import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from ..data.files import iter_json_rows
from ..data.formats import RowReader, dataset_rows, fingerprint, is_dataset
from ..data.problems import BadRow, RawRow
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
        source: A file of JSON Lines or one JSON list, a data set's folder, or a Hub id.
        name: What errors call it.
        num_rows: How many there are.
        sha256: Identity of their content, order and lines.
        loaded: The rows of a data set, which is loaded once and kept; of a file None. Only of JSON Lines a row at a
            time is in memory.
    """

    source: str
    name: str
    num_rows: int
    sha256: str
    loaded: Sequence[RawRow] | None = field(default=None, repr=False)

    def __iter__(self) -> Iterator[UploadRow]:
        return self.read(RowReader(self.name, trainable=True))

    def read(self, reader: RowReader) -> Iterator[UploadRow]:
        """The rows, and in ``reader`` what it saw of them.

        Raises:
            DataError: after the last row, where some cannot be used.
        """
        return _rows(_of_file(Path(self.source), self.name) if self.loaded is None else self.loaded, reader)


def open_upload(source: str | Path, *, name: str | None = None) -> Upload:
    """Read it once, to the end, so that what is wrong with it is reported before anything else is done.

    Raises:
        DataError: nothing there, or a row cannot be used; the first bad one in full, and how many more there are.
    """
    name = name or str(source)
    if stat.S_ISFIFO(_mode(source)):
        raise DataError(f"{name}: a pipe, and an upload is read more than once. Write it to a file first.")
    loaded = dataset_rows(str(source), "train") if is_dataset(str(source)) else None
    upload = Upload(str(source), name, 0, "", loaded)
    digest, num_rows = sha256(), 0
    reader = RowReader(name, trainable=True)
    for row in upload.read(reader):
        # With its line: a stored result that names other lines than the file has is not this file's.
        digest.update(f"{row.line} {'' if row.record is None else fingerprint([row.record])}\n".encode())
        num_rows += 1
    reader.say_format()
    return replace(upload, num_rows=num_rows, sha256=digest.hexdigest())


def _mode(source: str | Path) -> int:
    try:
        return Path(source).stat().st_mode
    except (OSError, ValueError):
        return 0


def _rows(raw: Iterable[RawRow], reader: RowReader) -> Iterator[UploadRow]:
    for row_id, (line, row) in enumerate(raw):
        record: Record | None
        try:
            record = reader.read(row_id, line, row)
        except BadRow as problem:
            if problem.kind not in EMPTY_KINDS:
                reader.refuse(line, problem)
                continue
            record = None
        if record is not None and not any(m.content.strip() for m in record.messages if m.role != "assistant"):
            record = None  # a chat's prompt; the other formats have reported theirs above
        yield UploadRow(row_id, line, record)
    reader.finish()


def _of_file(path: Path, name: str) -> Iterator[RawRow]:
    try:
        yield from iter_json_rows(path)
    except DataError as error:
        raise DataError(error.message.replace(str(path), name)) from error
