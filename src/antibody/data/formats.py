"""Load training rows, prompts and refusals: JSON Lines, a JSON list, a data set's folder or a Hub data set.

``rows.py`` lists the accepted formats. Every error names file, line, field and how to mend it; a file with several
bad rows names the first and counts the others.
"""

import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..errors import DataError
from .files import BadRow, RawRow, read_json_rows, read_text, report
from .records import Record
from .rows import check_trainable, row_format, row_messages

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
"""OWNER/NAME, or OWNER/NAME:CONFIG where the data set has several configurations."""

FILE_SUFFIXES = {".json", ".jsonl", ".txt", ".csv", ".tsv", ".parquet"}


def load_records(source: str | Path, *, split: str = "train") -> list[Record]:
    """The training rows of ``source``; each ends with an assistant's completion and trains at least one.

    Args:
        source: A .jsonl or .json file, a data set's folder (as ``Dataset.save_to_disk`` writes it, or with .parquet
            files), or a Hub id: OWNER/NAME or OWNER/NAME:CONFIG.
        split: Of a data set; a file has none.

    Raises:
        DataError: nothing there, or a row cannot be used. Nothing is skipped silently.
    """
    return _records(source, split=split, trainable=True)


def load_prompts(source: str | Path, *, split: str = "train") -> list[Record]:
    """Rows to ask a model. As ``load_records``, but the completion may be missing; where a row ends with one it is
    the reference.
    """
    return _records(source, split=split, trainable=False)


def load_refusals(path: str | Path) -> list[str]:
    """A list of refusals: one on each line of a .txt file, or JSON rows with ``refusal`` or ``completion``."""
    path = Path(path)
    if path.suffix == ".txt":
        return [line.strip() for line in read_text(path).split("\n") if line.strip()]
    refusals: list[str] = []
    bad: list[tuple[int, BadRow]] = []
    for line, row in read_json_rows(path):
        text = (row.get("refusal") or row.get("completion")) if isinstance(row, dict) else None
        if isinstance(row, BadRow):
            bad.append((line, row))
        elif isinstance(text, str) and text.strip():
            refusals.append(text.strip())
        else:
            bad.append(
                (line, BadRow("no refusal", 'no text in "refusal" or "completion". Add it, or remove the line.'))
            )
    if bad:
        raise report(str(path), bad)
    return refusals


def fingerprint(records: list[Record]) -> str:
    """Identity of the rows' content and order (SHA-256, hex). A file that is only moved keeps it."""
    digest = sha256()
    for record in records:
        content = [[m.role, m.content, m.trained] for m in record.messages]
        digest.update(json.dumps([record.row_id, record.template, content]).encode() + b"\n")
    return digest.hexdigest()


def _records(source: str | Path, *, split: str, trainable: bool) -> list[Record]:
    name = str(source)
    rows = dataset_rows(name, split) if is_dataset(name) else read_json_rows(Path(source))
    records: list[Record] = []
    bad: list[tuple[int, BadRow]] = []
    first: tuple[int, str] | None = None
    for row_id, (line, row) in enumerate(rows):
        try:
            if isinstance(row, BadRow):
                raise row
            form = row_format(row)
            first = first or (line, form)
            if form != first[1]:
                message = (
                    f"a {form} row, but line {first[0]} is a {first[1]} row. Put each format into a file of its own."
                )
                raise BadRow("mixed formats", message)
            messages, template = row_messages(row, form=form)
            if trainable:
                check_trainable(messages, form=form)
        except BadRow as problem:
            bad.append((line, problem))
        else:
            records.append(Record(row_id, messages, template, source=name, line=line))
    if bad:
        raise report(name, bad)
    return records


def is_dataset(name: str) -> bool:
    """Whether ``name`` is a data set's folder, or can only be its id."""
    path = Path(name)
    if path.is_dir():
        return _saved_to_disk(path) or any(path.glob("**/*.parquet"))
    return not path.exists() and path.suffix not in FILE_SUFFIXES and HUB_ID.fullmatch(name) is not None


def _saved_to_disk(folder: Path) -> bool:
    return (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists()


def dataset_rows(name: str, split: str) -> list[RawRow]:
    """Rows of a data set; a row's line is its 1-based position."""
    # Imported here: it costs a second, and a file needs none of it.
    from datasets import DatasetDict, load_dataset, load_from_disk

    dataset: Any
    path = Path(name)
    try:
        if path.is_dir():
            dataset = load_from_disk(name) if _saved_to_disk(path) else load_dataset(str(path.resolve()))
        else:
            hub_id, _, config = name.partition(":")
            dataset = load_dataset(hub_id, config or None)
    except Exception as error:  # the Hub's client, pyarrow and datasets each raise their own kinds
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if path.is_dir():
            raise DataError(f"{name}: the data set cannot be loaded ({reason}). Save it again.") from error
        raise DataError(
            f"{name}: no such file, and the data set cannot be loaded ({reason}). Check the name and the connection, "
            "or download it first and give the file."
        ) from error
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise DataError(f"{name}: no split '{split}'. Splits: {', '.join(map(str, dataset))}.")
        dataset = dataset[split]
    if len(dataset) == 0:
        raise DataError(f"{name}: split '{split}' is empty.")
    return [(index + 1, row) for index, row in enumerate(dataset)]
