"""Rows as they are given, each with its line: a file, a data set's folder or Hub id, bytes, or Python objects.

Whatever is wrong with them is reported under the name that their user knows them by.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, cast

from ..errors import DataError
from .files import iter_json_rows, rows_of
from .problems import BadRow, RawRow
from .strict_json import as_json

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
"""OWNER/NAME, or OWNER/NAME:CONFIG where the data set has several configurations."""

FILE_SUFFIXES = {".json", ".jsonl", ".txt", ".csv", ".tsv", ".parquet"}

DATA_SUFFIXES = FILE_SUFFIXES | {".arrow", ".gz", ".zip", ".zst", ".xml", ".webdataset", ".tar"}
NO_DATA = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "requirements.txt"}
"""Files of a data set's folder that hold no rows."""


@dataclass(frozen=True)
class RawRows:
    """Rows before anything is made of them. They can be gone through again and again.

    Attributes:
        name: What errors call them.
        begin: Begins one pass over (line, row). A file is read a row at a time, and a data set is loaded once.
    """

    name: str
    begin: Callable[[], Iterator[RawRow]]

    def __iter__(self) -> Iterator[RawRow]:
        return self.begin()


Given = str | Path | bytes | Iterable[Mapping[str, Any]] | RawRows
"""A file's or a data set's name, the bytes of a file, rows as Python objects, or what ``raw_rows`` made of these."""


def raw_rows(given: Given, *, name: str | None = None, split: str = "train") -> RawRows:
    """Rows to go through.

    Args:
        given: A .jsonl or .json file, a data set's folder (as ``Dataset.save_to_disk`` writes it, or with .parquet
            files), a Hub id (OWNER/NAME or OWNER/NAME:CONFIG), the bytes of a file, or rows.
        name: What errors call them; by default what was given, where that is a name.
        split: The part of a data set to read; nothing else has parts.

    Raises:
        DataError: a data set cannot be loaded. What is wrong with other rows is reported by a pass over them.
    """
    if isinstance(given, RawRows):
        return given
    if isinstance(given, str | Path):
        called = name or str(given)
        if is_dataset(str(given)):
            loaded = dataset_rows(str(given), split, name=called)
            return RawRows(called, lambda: iter(loaded))
        return RawRows(called, lambda: iter_json_rows(Path(given), called))
    called = name or "the rows"
    if isinstance(given, bytes):
        return RawRows(called, lambda: rows_of(called, BufferedReader(cast(Any, BytesIO(given)))))
    kept = list(given)
    return RawRows(called, lambda: _objects(kept, called))


def _objects(rows: Sequence[Mapping[str, Any]], name: str) -> Iterator[RawRow]:
    """Rows given as Python objects; a row's line is its 1-based position."""
    if not rows:
        raise DataError(f"{name}: there is no row. Give at least one.")
    for line, row in enumerate(rows, 1):
        try:
            yield line, as_json(dict(row) if isinstance(row, Mapping) else row)
        except BadRow as problem:
            yield line, problem


def is_dataset(name: str) -> bool:
    """Whether ``name`` is a data set's folder, or can only be its id.

    Raises:
        DataError: the name is empty, or its folder cannot be looked into.
    """
    if not name.strip():
        raise DataError("the name of the data is empty. Give a file, a data set's folder or a Hub id.")
    path = Path(name)
    try:
        if path.is_dir():
            # As deep as a data set's folder is; a name such as / would mean the whole disk.
            return _saved_to_disk(path) or any(any(path.glob(f"{'*/' * depth}*.parquet")) for depth in range(4))
        return not path.exists() and path.suffix not in FILE_SUFFIXES and HUB_ID.fullmatch(name) is not None
    except OSError as error:
        raise DataError(f"{name[:300]}: cannot be read ({error.strerror}). Check the path.") from None


def _saved_to_disk(folder: Path) -> bool:
    return (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists()


def dataset_rows(place: str, split: str, *, name: str) -> list[RawRow]:
    """Load the rows of a data set; a row's line is its 1-based position. A folder's rows leave nothing in the cache."""
    # Imported here: it costs a second, and a file needs none of it.
    from datasets import DatasetDict, load_dataset, load_from_disk

    dataset: Any
    path = Path(place)
    with tempfile.TemporaryDirectory() as cache:
        try:
            if path.is_dir() and _saved_to_disk(path):
                dataset = load_from_disk(place)
            elif path.is_dir():
                _require_parquet_alone(path, name)
                dataset = load_dataset(str(path.resolve()), cache_dir=cache)
            else:
                hub_id, _, config = place.partition(":")
                dataset = load_dataset(hub_id, config or None)
        except DataError:
            raise
        except Exception as error:  # the Hub's client, pyarrow and datasets each raise their own kinds
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            if path.is_dir():
                raise DataError(f"{name}: the data set cannot be loaded ({reason}). Save it again.") from error
            raise DataError(
                f"{name}: no such file, and the data set cannot be loaded ({reason}). Check the name and the "
                "connection, or download it first and give the file."
            ) from error
        if isinstance(dataset, DatasetDict):
            if split not in dataset:
                raise DataError(f"{name}: no split '{split}'. Splits: {', '.join(map(str, dataset))}.")
            dataset = dataset[split]
        if len(dataset) == 0:
            raise DataError(f"{name}: split '{split}' is empty.")
        return [(index + 1, _without_fillers(row)) for index, row in enumerate(dataset)]


def _require_parquet_alone(folder: Path, name: str) -> None:
    """``load_dataset`` reads the commonest kind of file in a folder, and is silent about the others."""
    kinds = Counter(
        file.suffix.lower()
        for file in folder.glob("**/*")
        if file.suffix.lower() in DATA_SUFFIXES and file.name not in NO_DATA and file.is_file()
    )
    if len(kinds) > 1:
        found = ", ".join(f"{num} {kind}" for kind, num in sorted(kinds.items()))
        raise DataError(
            f"{name}: holds data files of several kinds ({found}), and only one kind can be the rows. Move the "
            ".parquet files into a folder of their own, or name one file."
        )


def _without_fillers(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row without the nulls that a column of objects puts where only other rows' tools and arguments have a field.

    A row's own nulls go with them: a column no longer says which are which, and a null more in a tool's schema would
    be trained.
    """
    cleaned = dict(row)
    for field in ("tools", "functions"):
        if isinstance(row.get(field), list):
            cleaned[field] = _without_nulls(row[field])
    for field in ("messages", "prompt", "completion", "conversations"):
        messages = row.get(field)
        if isinstance(messages, list) and any(isinstance(m, dict) and m.get("tool_calls") for m in messages):
            cleaned[field] = [
                m | {"tool_calls": _without_nulls(m["tool_calls"])}
                if isinstance(m, dict) and m.get("tool_calls")
                else m
                for m in messages
            ]
    return cleaned


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
