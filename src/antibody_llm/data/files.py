"""Files of rows: from bytes to JSON objects, each with the line it came from.

A row that cannot be read becomes a ``BadRow`` in its place, so that the report can name the first one and count the
others. A file that cannot be read at all is a ``DataError`` at once. ``unreadable.py`` recognises what such a file is.
"""

import codecs
import json
import re
from collections.abc import Iterator
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import DataError
from .problems import BadRow, RawRow, report
from .strict_json import LENIENT, STRICT, Disputed, what_broke
from .unreadable import empty, not_utf8, os_problem, what_bytes_are, what_text_is

MAX_LINE_BYTES = 64 * 2**20
"""The longest row that is read. A line without end would otherwise fill the memory."""
CHUNK_BYTES = 2**17
_SPACES = re.compile(r"[ \n\r\t]*")


def read_text(path: Path, name: str | None = None) -> str:
    """The whole file as text.

    Args:
        path: Where it is.
        name: What errors call it; by default its path.

    Raises:
        DataError: no such file, a directory, empty, a byte order mark, or not UTF-8 (names byte and line).
    """
    name = name or str(path)
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        raise os_problem(name, path, error) from None
    if (known := what_bytes_are(name, raw)) is not None:
        raise known
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise not_utf8(name, line, raw, error.start, offset=error.start) from None
    if not text.strip():
        raise empty(name)
    return text


def iter_json_rows(path: Path, name: str | None = None) -> Iterator[RawRow]:
    """Yield the rows of a JSON Lines file, or of a file that holds one JSON list. Blank lines are no rows.

    Only a row and a buffer are in memory.

    Args:
        path: Where it is.
        name: What errors call it; by default its path.

    Raises:
        DataError: the file cannot be read as text (see ``read_text``). A later line that is not UTF-8, or longer
            than ``MAX_LINE_BYTES``, raises when it is reached.
    """
    name = name or str(path)
    try:
        file = path.open("rb")
    except (OSError, ValueError) as error:
        raise os_problem(name, path, error) from None
    with file:
        try:
            yield from rows_of(name, file)
        except OSError as error:
            raise os_problem(name, path, error) from None


def rows_of(name: str, file: BufferedReader, *, max_line_bytes: int | None = None) -> Iterator[RawRow]:
    """Read as ``iter_json_rows`` does, from an open file.

    Args:
        name: What errors call it.
        file: The file at its beginning; a pipe will do.
        max_line_bytes: Length of the longest row that is read; None: ``MAX_LINE_BYTES``.
    """
    if (known := what_bytes_are(name, file.peek(1))) is not None:
        raise known
    line, offset = 1, 0
    while True:  # blank lines, however many, up to the first character
        head = file.peek(1)
        if not head:
            raise empty(name)
        blank = len(head) - len(head.lstrip())
        line, offset = line + head.count(b"\n", 0, blank), offset + blank
        file.read(blank)
        if blank < len(head):
            break
    rows = _list_rows if head[blank : blank + 1] == b"[" else _line_rows
    yield from rows(name, file, line, offset, MAX_LINE_BYTES if max_line_bytes is None else max_line_bytes)


def _line_rows(name: str, file: BinaryIO, first: int, offset: int, longest: int) -> Iterator[RawRow]:
    parse, lines = STRICT.decode, iter(partial(file.readline, longest + 1), b"")
    # Only \n ends a line: str.splitlines would also cut at U+2028, which JSON allows inside a string.
    for line, raw in enumerate(lines, first):
        if len(raw) > longest:
            raise _too_long(name, line, raw, longest)
        try:
            content = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(name, line, raw, error.start, offset=offset + error.start) from None
        offset += len(raw)
        try:
            yield line, parse(content)
        except (ValueError, RecursionError) as error:
            if not content.strip():
                continue
            if line == first and (known := what_text_is(name, line, content, _ahead(file), error)) is not None:
                raise known from None
            yield line, what_broke(content, 0, error, "Each line holds one whole JSON object.")


def _ahead(file: BinaryIO) -> str:
    """The next part of the file, which remains to be read; empty where it is not UTF-8."""
    if not file.seekable():
        return ""
    here = file.tell()
    raw = file.read(2**20)
    file.seek(here)
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(raw)
    except UnicodeDecodeError:
        return ""


def _too_long(name: str, line: int, raw: bytes, longest: int) -> DataError:
    mac = " Its lines may end in \\r alone: tr '\\r' '\\n' < IN > OUT." if b"\r" in raw.strip() else ""
    return DataError(
        f"{name}, line {line}: longer than {longest // 2**20} MB, which no row is. Each line holds one whole "
        f"JSON object; split or remove it.{mac}"
    )


def _list_rows(name: str, file: BinaryIO, line: int, offset: int, longest: int) -> Iterator[RawRow]:
    """The elements of one JSON list, read one by one so that each keeps its line."""
    window = _Window(name, file, line, offset, longest)
    window.next()
    window.position += 1  # the "["
    begun = False
    while (character := window.next()) != "]" or begun:
        where = window.line
        value = window.value()
        yield where, value
        character = window.next()
        if character == "]":
            break
        if character != ",":
            problem = "broken JSON: ',' or ']' is missing after this element of the list."
            raise report(name, [(window.line, BadRow("broken JSON", problem))])
        window.position += 1
        begun = True
    else:
        raise DataError(f"{name}: the JSON list is empty. Give at least one row.")
    window.position += 1  # the "]"
    if rest := window.next():
        problem = "text after the end of the JSON list. Remove it."
        if rest == "[" and not isinstance(value, list):
            problem = (
                "a second JSON list: each line is a bare list. Each line holds one whole JSON object: write "
                '{"messages": [...]} around each list of messages.'
            )
        raise report(name, [(window.line, BadRow("broken JSON", problem))])


class _Window:
    """A file's text, of which only the part that is being read is in memory."""

    def __init__(self, name: str, file: BinaryIO, line: int, offset: int, longest: int) -> None:
        self.name, self.file, self.longest = name, file, longest
        self.text, self.position = "", 0
        self.line = line
        """The line that ``position`` is in."""
        self.lines_read, self.offset = line, offset
        """Line and byte at which the next chunk begins."""
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.ended = False

    def next(self) -> str:
        """Move to the next character that is no space and return it; empty at the end of the file."""
        while True:
            self._advance(_SPACES.match(self.text, self.position).end())  # type: ignore[union-attr]
            if self.position < len(self.text) or not self._more():
                return self.text[self.position : self.position + 1]

    def value(self) -> Any:
        """The JSON value at ``position``, which then is behind it; a ``BadRow`` where parsers disagree on it.

        Raises:
            DataError: broken, or longer than a row may be.
        """
        while True:
            try:
                value, end = STRICT.raw_decode(self.text, self.position)
            except (ValueError, RecursionError) as error:
                if self._may_go_on(error) and self._more():
                    continue
                value = what_broke(self.text, self.position, error, "The file holds one JSON list.")
                if not isinstance(error, Disputed):
                    raise report(self.name, [(self.line, value)]) from None
                try:
                    _, end = LENIENT.raw_decode(self.text, self.position)
                except (ValueError, RecursionError):
                    raise report(self.name, [(self.line, value)]) from None
            if end == len(self.text) and self._more():
                continue  # a number may go on
            self._advance(end)
            return value

    def _may_go_on(self, error: Exception) -> bool:
        """Whether the value broke off only because the text did."""
        if isinstance(error, Disputed):
            try:
                LENIENT.raw_decode(self.text, self.position)
            except (ValueError, RecursionError) as other:
                return self._may_go_on(other)
            return False
        if not isinstance(error, json.JSONDecodeError):
            return False
        # 16: an escape or a constant that the end cuts is reported where it begins.
        return error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - 16

    def _advance(self, position: int) -> None:
        self.line += self.text.count("\n", self.position, position)
        self.position = position

    def _more(self) -> bool:
        """Read on; False at the end of the file."""
        if self.ended:
            return False
        kept = self.text[self.position :]
        if len(kept) > self.longest:
            raise _too_long(self.name, self.line, b"", self.longest)
        chunk = self.file.read(max(CHUNK_BYTES, len(kept)))  # at least doubled, so that a long value costs no square
        self.ended = not chunk
        try:
            self.text, self.position = kept + self.decoder.decode(chunk, final=self.ended), 0
        except UnicodeDecodeError as error:
            line = self.lines_read + error.object.count(b"\n", 0, error.start)
            offset = self.offset - (len(error.object) - len(chunk)) + error.start
            raise not_utf8(self.name, line, error.object, error.start, offset=offset) from None
        self.offset += len(chunk)
        self.lines_read += chunk.count(b"\n")
        return True
