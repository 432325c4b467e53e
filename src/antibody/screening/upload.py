"""An upload as a stream of rows: of JSON Lines the texts pass by, and none is kept.

Whatever could be trained on is read as for training, and what is wrong with a row is told alike. Only a row whose
prompt or answer is blank passes as empty instead of stopping everything: there is nothing in it to judge.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..data.files import BadRow, RawRow, iter_json_rows, report
from ..data.formats import dataset_rows, fingerprint, is_dataset
from ..data.records import Record
from ..data.rows import check_trainable, row_format, row_messages
from ..errors import DataError

EMPTY_KINDS = ("empty prompt", "empty instruction", "empty completion")
"""Of ``BadRow``."""
MAX_BAD_ROWS = 10_000
"""After so many the reader gives up looking for more."""


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
        return _rows(_of_file(Path(self.source), self.name) if self.loaded is None else self.loaded, self.name)


def open_upload(source: str | Path, *, name: str | None = None) -> Upload:
    """Read it once, to the end, so that what is wrong with it is told before anything else is done.

    Raises:
        DataError: nothing there, or a row cannot be used; the first bad one in full, and how many more there are.
    """
    name = name or str(source)
    loaded = dataset_rows(str(source), "train") if is_dataset(str(source)) else None
    upload = Upload(str(source), name, 0, "", loaded)
    digest, num_rows = sha256(), 0
    for row in upload:
        # With its line: a stored result that names other lines than the file has is not this file's.
        digest.update(f"{row.line} {'' if row.record is None else fingerprint([row.record])}\n".encode())
        num_rows += 1
    return replace(upload, num_rows=num_rows, sha256=digest.hexdigest())


def _rows(raw: Iterable[RawRow], name: str) -> Iterator[UploadRow]:
    bad: list[tuple[int, BadRow]] = []
    first: tuple[int, str] | None = None
    for row_id, (line, row) in enumerate(raw):
        try:
            if isinstance(row, BadRow):
                raise row
            form = row_format(row)
            first = first or (line, form)
            if form != first[1]:
                raise BadRow(
                    "mixed formats",
                    f"a {form} row, but line {first[0]} is a {first[1]} row. Put each format into a file of its own.",
                )
            content = _content(row, row_id, line, form, name)
        except BadRow as problem:
            bad.append((line, problem))
            if len(bad) == MAX_BAD_ROWS:
                break
        else:
            yield UploadRow(row_id, line, content)
    if bad:
        raise report(name, bad)


def _of_file(path: Path, name: str) -> Iterator[RawRow]:
    try:
        yield from iter_json_rows(path)
    except DataError as error:
        raise DataError(str(error).replace(str(path), name)) from error


def _content(row: Any, row_id: int, line: int, form: str, name: str) -> Record | None:
    try:
        messages, template = row_messages(row, form=form)
        check_trainable(messages, form=form)
    except BadRow as problem:
        if problem.kind in EMPTY_KINDS:
            return None
        raise
    if not any(message.content.strip() for message in messages if message.role != "assistant"):
        return None  # a chat's prompt; the other formats have told theirs above
    return Record(row_id, messages, template, source=name, line=line)
