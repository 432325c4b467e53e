"""Rows for a run: from a file, a data set or a list of rows."""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from ..data.duplicates import repeats
from ..data.formats import load_prompts, load_records, load_refusals
from ..data.records import Record
from ..data.source import Source
from ..errors import DataError
from ..events import warn
from ..mentions import setting
from ..paths import as_file, checked_path
from ..settings import Rows
from ..text import quoted


def read_rows(rows: Rows, *, name: str, prompts: bool = False, upload: bool = False) -> Source:
    """The rows of a data argument.

    Args:
        rows: See ``Rows``.
        name: What an error calls rows that are given as a list.
        prompts: Whether the completion may be missing.
        upload: Whether they are a user's. A warning then counts those that repeat; all are used.

    Raises:
        DataError: they cannot be read; names file, line and mend.
    """
    source = _read(rows, name, load_prompts if prompts else load_records)
    if upload and (repeated := str(repeats(source.records))):
        warn(f"{source.name}: {repeated}. All are used.")
    return source


def _read(rows: Rows, name: str, load: Callable[[str | Path], list[Record]]) -> Source:
    with rows_file(rows, name=name) as (place, called):
        if place == called:
            return Source(called, load(place))
        try:
            records = load(place)
        except DataError as error:
            raise DataError(error.message.replace(place, called)) from error
    return Source(called, [replace(record, source=called) for record in records])


@contextmanager
def rows_file(rows: Rows, *, name: str) -> Iterator[tuple[str, str]]:
    """Where the rows of a data argument lie, and what an error calls them.

    Rows that are given themselves, and rows that come through a pipe, are written to a temporary file, so that they
    are checked in one place alone and can be read twice.

    Args:
        rows: A file, a data set's folder or Hub id, or rows.
        name: What to call rows that are given themselves.

    Raises:
        DataError: a row holds what JSON cannot, or a pipe or a device cannot be read.
    """
    if isinstance(rows, str | Path):
        with as_file(checked_path(rows, name)) as file:
            yield str(rows) if file == Path(rows) else str(file), str(rows)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        try:
            with file.open("w", encoding="utf-8") as opened:
                opened.writelines(json.dumps(row) + "\n" for row in rows)
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(f"{name}: a row holds what JSON cannot ({error}). Give rows of text.") from error
        yield str(file), name


def read_refusals(
    refusals: str | Path | Sequence[str] | None, *, default: Sequence[str] | None = None
) -> tuple[str, ...]:
    """One-line refusals.

    Args:
        refusals: A file, or the texts.
        default: What None stands for; the list that comes with the package where that is None too.

    Raises:
        DataError: the list is empty, or holds an empty one or half a surrogate pair.
    """
    if refusals is None and default is not None:
        return tuple(default)
    if refusals is None:
        refusals = Path(str(files("antibody_llm"))) / "data" / "refusals.txt"
    if isinstance(refusals, str | Path):
        with as_file(checked_path(refusals, setting("refusals"))) as file:
            try:
                texts = load_refusals(file)
            except DataError as error:
                raise DataError(error.message.replace(str(file), str(refusals))) from error
    else:
        texts = list(refusals)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError("the list of refusals is empty or holds an empty one. Give at least one line of text.")
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(f"the refusal {quoted(text)} holds half a surrogate pair. Remove it.") from None
    return tuple(texts)
