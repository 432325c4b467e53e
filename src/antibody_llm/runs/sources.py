"""Rows for a run: from a file, a data set or a list of rows."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from ..data.formats import load_refusals
from ..data.raw import RawRows, raw_rows
from ..data.source import Source, read_pairs, read_source
from ..errors import DataError
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
        DataError: they cannot be read; names source, line and field, and says how to fix it.
    """
    with opened(rows, name=name) as raw:
        return read_source(raw, prompts=prompts, upload=upload)


def read_preferences(rows: Rows, *, name: str) -> Source:
    """The pairs of a data argument; see ``read_rows``."""
    with opened(rows, name=name) as raw:
        return read_pairs(raw)


@contextmanager
def opened(rows: Rows, *, name: str) -> Iterator[RawRows]:
    """The rows of a data argument, to go through as often as is needed.

    A pipe gives its rows once: it is copied to a temporary file, which is gone when this ends.

    Args:
        rows: A file, a data set's folder or Hub id, or rows.
        name: What to call rows that are given themselves.

    Raises:
        DataError: a data set, a pipe or a device cannot be read. A pass over the rows reports what is wrong with them.
    """
    if isinstance(rows, str | Path):
        with as_file(checked_path(rows, name)) as file:
            yield raw_rows(rows if file == Path(rows) else file, name=str(rows))
    else:
        yield raw_rows(rows, name=name)


def read_refusals(
    refusals: str | Path | Sequence[str] | None, *, default: Sequence[str] | None = None
) -> tuple[str, ...]:
    """One-line refusals.

    Args:
        refusals: A file, or the texts.
        default: The texts to use if ``refusals`` is None; if this is None too, the package's own list.

    Raises:
        DataError: the list is empty, or holds an empty one or half a surrogate pair.
    """
    if refusals is None and default is not None:
        return tuple(default)
    if refusals is None:
        refusals = Path(str(files("antibody_llm"))) / "data" / "refusals.txt"
    if isinstance(refusals, str | Path):
        with as_file(checked_path(refusals, setting("refusals"))) as file:
            texts = load_refusals(file, name=str(refusals))
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
