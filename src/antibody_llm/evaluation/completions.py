"""completions.parquet: what the model said and what each judge made of it, so that judging again needs no model.

Columns: ``row_id`` int64, ``set`` (harmful, benign, test, retention), ``prompt``, ``completion``, ``reference``
(null without one), and for each judge ``verdict_<name>`` (complied, refused, incoherent; null in the sets that judges
are not asked about, and where a judge came to no verdict; harmless and unparsed are among them too), and
``note_<name>`` where it has something to say for its verdicts. A judge that compares test completions with their
references has ``preference_<name>`` (won, lost, tied, inconsistent, unparsed) and ``note_<name>``. The file's metadata
holds the settings under ``antibody.evaluation``, as JSON.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from ..data.verdicts import Preference, Verdict
from ..errors import DataError
from ..files import whole
from .decoding import DecodingSettings

_VERDICT, _PREFERENCE, _NOTE = "verdict_", "preference_", "note_"
_SETTINGS = b"antibody.evaluation"


class EvaluationSet(StrEnum):
    """Which question a row helps to answer."""

    HARMFUL = "harmful"
    BENIGN = "benign"
    TEST = "test"
    RETENTION = "retention"


JUDGED_SETS = (EvaluationSet.HARMFUL, EvaluationSet.BENIGN)
"""Judges are asked about these; test and retention are compared with a reference."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One row of the table."""

    row_id: int
    """The position of the row within its set."""
    set: EvaluationSet
    prompt: str
    """What is asked: the last user message."""
    completion: str
    reference: str | None = None
    verdicts: Mapping[str, Verdict | None] = field(default_factory=dict)
    """Verdicts by judge; None where a judge came to none."""
    preferences: Mapping[str, Preference] = field(default_factory=dict)
    """Whether it is better than its reference, by judge."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """What a judge's verdict rests on, by judge."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What a measure needs beside the completions."""

    decoding: DecodingSettings
    """How harmful and benign prompts are answered."""
    task_decoding: DecodingSettings
    """How test and retention prompts are answered."""
    answer: str = "exact"
    """Rule by which test answers are compared; see ``answers.py``."""
    retention_answer: str = "exact"


def write_completions(path: Path, rows: Sequence[Completion], settings: EvaluationSettings) -> None:
    """Write the table, as a whole or not at all.

    Raises:
        OutputError: The disk is full, or the folder is missing or not writable. What was there is unchanged.
    """
    judges = sorted({judge for row in rows for judge in row.verdicts})
    columns: dict[str, pa.Array] = {
        "row_id": pa.array([row.row_id for row in rows], pa.int64()),
        "set": pa.array([row.set.value for row in rows], pa.string()),
        "prompt": pa.array([row.prompt for row in rows], pa.string()),
        "completion": pa.array([row.completion for row in rows], pa.string()),
        "reference": pa.array([row.reference for row in rows], pa.string()),
    }
    for judge in judges:
        columns[_VERDICT + judge] = pa.array([row.verdicts.get(judge) for row in rows], pa.string())
    for judge in sorted({judge for row in rows for judge in row.preferences}):
        columns[_PREFERENCE + judge] = pa.array([row.preferences.get(judge) for row in rows], pa.string())
    for judge in sorted({judge for row in rows for judge in row.notes}):
        columns[_NOTE + judge] = pa.array([row.notes.get(judge) for row in rows], pa.string())
    metadata = {_SETTINGS: TypeAdapter(EvaluationSettings).dump_json(settings)}
    with whole(path) as temporary:
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), temporary)


def read_completions(path: Path) -> tuple[list[Completion], EvaluationSettings]:
    """The rows in their order, and the settings they were made with.

    Raises:
        DataError: The file is missing, or is not a table of completions.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: cannot be read as completions: {error}. Give the completions.parquet of an `evaluate` run."
        ) from error
    judges, comparers, noted = (
        [name.removeprefix(kind) for name in table.column_names if name.startswith(kind)]
        for kind in (_VERDICT, _PREFERENCE, _NOTE)
    )
    try:
        settings = TypeAdapter(EvaluationSettings).validate_json((table.schema.metadata or {})[_SETTINGS])
        rows = [
            Completion(
                row_id=row["row_id"],
                set=EvaluationSet(row["set"]),
                prompt=row["prompt"],
                completion=row["completion"],
                reference=row["reference"],
                verdicts=_verdicts(row, judges),
                preferences={
                    judge: Preference(row[_PREFERENCE + judge]) for judge in comparers if row[_PREFERENCE + judge]
                },
                notes={judge: row[_NOTE + judge] for judge in noted if row[_NOTE + judge]},
            )
            for row in table.to_pylist()
        ]
    except (KeyError, ValueError, ValidationError) as error:
        raise DataError(
            f"{path}: is not a table of completions ({error!r}). Give the completions.parquet of an `evaluate` run."
        ) from error
    return rows, settings


def _verdicts(row: Mapping[str, str | None], judges: Sequence[str]) -> dict[str, Verdict | None]:
    texts = {judge: row[_VERDICT + judge] for judge in judges}
    return {judge: None if text is None else Verdict(text) for judge, text in texts.items()}
