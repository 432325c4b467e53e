"""Files of rows: from bytes to JSON objects, each with the line it came from.

A row that cannot be read becomes a ``BadRow`` in its place, so that the report can name the first one and count the
others. A file that cannot be read at all is a ``DataError`` at once.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError

BOM = b"\xef\xbb\xbf"
PARQUET = b"PAR1"
NUM_LINES_SHOWN = 5


class BadRow(Exception):
    """One row cannot be used. ``kind`` groups rows that are bad in the same way.

    Args:
        kind: What is wrong, without the row's own details: ``"unknown role"``.
        message: What is wrong with this row and how to mend it.
        field: Where in the row: ``"messages[1].role"``.
    """

    def __init__(self, kind: str, message: str, field: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.field = field


RawRow = tuple[int, Any]
"""Line (1-based; of the row's first character) and what stood there: a JSON value, or the ``BadRow`` it is."""


def report(source: str, bad: Sequence[tuple[int, BadRow]]) -> DataError:
    """The first bad row in full, then how many more are like it and how many are bad otherwise."""
    line, first = bad[0]
    field = f", {first.field}" if first.field else ""
    message = f"{source}, line {line}{field}: {first}"
    alike = [other for other, problem in bad[1:] if problem.kind == first.kind]
    if alike:
        shown = ", ".join(str(other) for other in alike[:NUM_LINES_SHOWN]) + (
            ", ..." if len(alike) > NUM_LINES_SHOWN else ""
        )
        message += f" ({len(alike)} more like it: line {shown})"
    if num_others := len(bad) - 1 - len(alike):
        message += f" ({num_others} more {'row is' if num_others == 1 else 'rows are'} bad in another way)"
    return DataError(message)


def read_text(path: Path) -> str:
    """The whole file as text.

    Raises:
        DataError: no such file, a directory, empty, a byte order mark, or not UTF-8 (names byte and line).
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise _cannot_be_read(path, error) from None
    if raw.startswith(BOM):
        raise _begins_with_bom(path)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _not_utf8(path, line, raw[error.start], error.start) from None
    if not text.strip():
        raise _empty(path)
    return text


def read_json_rows(path: Path) -> list[RawRow]:
    """The rows of a JSON Lines file, or of a file that holds one JSON list. Blank lines are no rows."""
    return list(iter_json_rows(path))


def iter_json_rows(path: Path) -> Iterator[RawRow]:
    """As ``read_json_rows``, one row at a time: of JSON Lines only one line is in memory. A JSON list is read whole.

    Raises:
        DataError: as ``read_text``; where a later line is not UTF-8, when that line is reached.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise _cannot_be_read(path, error) from None
    offset, begun = 0, False
    with file:
        # Only \n ends a line: str.splitlines would also cut at U+2028, which JSON allows inside a string.
        for line, raw in enumerate(file, 1):
            if line == 1 and raw.startswith(BOM):
                raise _begins_with_bom(path)
            if line == 1 and raw.startswith(PARQUET):
                raise DataError(
                    f"{path}: a Parquet file, not JSON. Name the folder it is in: that is read as a data set."
                )
            try:
                content = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, line, raw[error.start], offset + error.start) from None
            offset += len(raw)
            if not content.strip():
                continue
            if not begun and content.lstrip().startswith("["):
                yield from _list_rows(str(path), read_text(path))
                return
            begun = True
            try:
                yield line, json.loads(content)
            except (ValueError, RecursionError) as error:
                yield line, BadRow("broken JSON", _what_broke(error, "line"))
    if not begun:
        raise _empty(path)


def _cannot_be_read(path: Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: no such file. Check the path; a Hub data set is written OWNER/NAME.")
    if isinstance(error, IsADirectoryError):
        return DataError(f"{path}: a directory, not a data file. {_files_in(path)}")
    return DataError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.")


def _begins_with_bom(path: Path) -> DataError:
    return DataError(
        f"{path}, line 1: begins with a byte order mark (EF BB BF). Save the file as UTF-8 without BOM, "
        f"for example with: sed -i '1s/^\\xEF\\xBB\\xBF//' {path}"
    )


def _not_utf8(path: Path, line: int, byte: int, offset: int) -> DataError:
    return DataError(
        f"{path}, line {line}: not UTF-8 (byte 0x{byte:02X} at offset {offset}). "
        "Save the file as UTF-8, for example with: iconv -f WINDOWS-1252 -t UTF-8"
    )


def _empty(path: Path) -> DataError:
    return DataError(f"{path}: the file is empty. Give one JSON object on each line.")


def _list_rows(source: str, text: str) -> list[RawRow]:
    """The elements of one JSON list, read one by one so that each keeps its line."""
    decoder = json.JSONDecoder()
    rows: list[RawRow] = []
    position = _skip_space(text, text.index("[") + 1)
    line, counted = 1, 0
    while text[position : position + 1] != "]" or rows:
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise report(source, [(line, BadRow("broken JSON", _what_broke(error, "list")))]) from None
        rows.append((line, value))
        position = _skip_space(text, end)
        if text[position : position + 1] == ",":
            position = _skip_space(text, position + 1)
        elif text[position : position + 1] == "]":
            break
        else:
            where = line + text.count("\n", counted, position)
            problem = BadRow("broken JSON", "broken JSON: ',' or ']' is missing after this element of the list.")
            raise report(source, [(where, problem)])
    if not rows:
        raise DataError(f"{source}: the JSON list is empty. Give at least one row.")
    if text[position + 1 :].strip():
        where = text.count("\n", 0, _skip_space(text, position + 1)) + 1
        raise report(source, [(where, BadRow("broken JSON", "text after the end of the JSON list. Remove it."))])
    return rows


def _skip_space(text: str, position: int) -> int:
    while text[position : position + 1] in {" ", "\n", "\r", "\t"}:
        position += 1
    return position


def _what_broke(error: Exception, container: str) -> str:
    at = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
    rule = "Each line holds one whole JSON object." if container == "line" else "The file holds one JSON list."
    return f"broken JSON ({at}). {rule} Mend or remove it."


def _files_in(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix in {".json", ".jsonl"})
    return f"Name one of its files: {', '.join(names[:5])}." if names else "It holds no .json or .jsonl file."
