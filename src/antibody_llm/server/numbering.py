"""Rows of an upload, each under the line by which screening, its report and the console name it."""

import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from ..data.files import rows_of
from ..data.problems import RawRow

NAME = "training file"
"""What errors call an upload."""


def buffered(file: BinaryIO) -> io.BufferedReader:
    """The file with a buffer, whichever store it comes from."""
    given: Any = file
    return given if isinstance(given, io.BufferedReader) else io.BufferedReader(given)


def numbered(file: BinaryIO) -> Iterator[RawRow]:
    """Its rows, each under its line, unless the upload is a list with several in one line: then under the next.

    Raises:
        DataError: as ``data.files.rows_of``.
    """
    number = 0
    for line, row in rows_of(NAME, buffered(file)):
        number = max(line, number + 1)
        yield number, row
