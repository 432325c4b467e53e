"""Load training rows, prompts and refusals: JSON Lines, a JSON list, a data set's folder or a Hub data set.

``rows.py`` lists the accepted formats. Every error names file, line, field and how to fix it; a file with several
bad rows names the first and counts the others.
"""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..events import inform
from .files import iter_json_rows, read_json_rows, read_text
from .problems import BadRow, RawRow, report, text_of
from .records import Message, Record
from .rows import check_trainable, row_content, row_format

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
"""OWNER/NAME, or OWNER/NAME:CONFIG where the data set has several configurations."""

FILE_SUFFIXES = {".json", ".jsonl", ".txt", ".csv", ".tsv", ".parquet"}

DATA_SUFFIXES = FILE_SUFFIXES | {".arrow", ".gz", ".zip", ".zst", ".xml", ".webdataset", ".tar"}
NO_DATA = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "requirements.txt"}
"""Files of a data set's folder that hold no rows."""

MAX_BAD_ROWS = 10_000
"""Number of bad rows at which the reader stops looking for more."""


def load_records(source: str | Path, *, split: str = "train") -> list[Record]:
    """The training rows of ``source``; each ends with an assistant's completion and trains at least one.

    Args:
        source: A .jsonl or .json file, a data set's folder (as ``Dataset.save_to_disk`` writes it, or with .parquet
            files), or a Hub id: OWNER/NAME or OWNER/NAME:CONFIG.
        split: The part of a data set to read; a file has none.

    Raises:
        DataError: nothing there, or a row cannot be used. Nothing is skipped silently.
    """
    return _records(source, split=split, trainable=True)


def load_prompts(source: str | Path, *, split: str = "train") -> list[Record]:
    """The rows of ``source`` to ask a model: the completion may be missing, and is the reference where it is there."""
    return _records(source, split=split, trainable=False)


def load_refusals(path: str | Path) -> list[str]:
    """A list of refusals: one on each line of a .txt file, or JSON rows with ``refusal`` or ``completion``."""
    path = Path(path)
    if path.suffix == ".txt":
        return [line.strip() for line in read_text(path).split("\n") if line.strip()]
    refusals: list[str] = []
    bad: list[tuple[int, BadRow]] = []
    for line, row in read_json_rows(path):
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
        raise report(str(path), bad)
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

    def refuse(self, line: int, problem: BadRow) -> None:
        """Remember a row that cannot be used, for the report.

        Raises:
            DataError: there are ``MAX_BAD_ROWS`` of them.
        """
        self.bad.append((line, problem))
        if len(self.bad) == MAX_BAD_ROWS:
            raise report(self.source, self.bad)

    def finish(self) -> None:
        """Report the bad rows; called after the last row.

        Raises:
            DataError: there were some.
        """
        if self.bad:
            raise report(self.source, self.bad)

    def say_format(self) -> None:
        """Report the format, where it is not one that the documentation asks for."""
        if self.first is not None and self.first[1] == "ShareGPT":
            inform(
                f"{self.source}: ShareGPT rows (conversations of from and value) are read as chats: human is user, gpt "
                "is assistant."
            )


def raw_rows(name: str, split: str) -> Iterator[RawRow]:
    """The rows of a file or a data set as they are, each with its line. A file is read a row at a time."""
    return iter(dataset_rows(name, split)) if is_dataset(name) else iter_json_rows(Path(name))


def _records(source: str | Path, *, split: str, trainable: bool) -> list[Record]:
    reader = RowReader(str(source), trainable=trainable)
    records: list[Record] = []
    for row_id, (line, row) in enumerate(raw_rows(reader.source, split)):
        try:
            records.append(reader.read(row_id, line, row))
        except BadRow as problem:
            reader.refuse(line, problem)
    reader.finish()
    reader.say_format()
    return records


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


def dataset_rows(name: str, split: str) -> list[RawRow]:
    """Rows of a data set; a row's line is its 1-based position. Of a folder's rows nothing stays in the cache."""
    # Imported here: it costs a second, and a file needs none of it.
    from datasets import DatasetDict, load_dataset, load_from_disk

    dataset: Any
    path = Path(name)
    with tempfile.TemporaryDirectory() as cache:
        try:
            if path.is_dir() and _saved_to_disk(path):
                dataset = load_from_disk(name)
            elif path.is_dir():
                _require_parquet_alone(path)
                dataset = load_dataset(str(path.resolve()), cache_dir=cache)
            else:
                hub_id, _, config = name.partition(":")
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


def _require_parquet_alone(folder: Path) -> None:
    """``load_dataset`` reads the commonest kind of file in a folder, and is silent about the others."""
    kinds = Counter(
        file.suffix.lower()
        for file in folder.glob("**/*")
        if file.suffix.lower() in DATA_SUFFIXES and file.name not in NO_DATA and file.is_file()
    )
    if len(kinds) > 1:
        found = ", ".join(f"{num} {kind}" for kind, num in sorted(kinds.items()))
        raise DataError(
            f"{folder}: holds data files of several kinds ({found}), and only one kind can be the rows. Move the "
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
