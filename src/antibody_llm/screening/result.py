"""What a finished screening reports, as an object and as summary.json."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..mentions import setting
from .evidence import EvidenceKind
from .posterior import Finding

SUMMARY = "summary.json"


@dataclass(frozen=True, kw_only=True)
class ScreenResult:
    """A finished screening: summary.json, and where it is."""

    output: Path
    """The run's folder, with rows.jsonl, rows.parquet, report.html and summary.json."""
    data: str
    num_rows: int
    num_scored: int
    """Rows with evidence, duplicates included."""
    num_distinct: int
    """Rows with evidence that no earlier row reads like."""
    flags: dict[str, int]
    """How many rows have each ``Flag``."""
    verdict: Finding
    estimated_harmful_share: float | None
    """Harmful share of the rows with evidence, 0 to 1; None without anchors, as is all that follows from them, and
    where too many rows are unfamiliar."""
    interval: tuple[float, float] | None
    """95 % interval of the share; unfamiliar rows may be harmful or not."""
    p_value: float | None
    """p of the test that the share is 0 among familiar rows."""
    num_likely_harmful: int | None
    """Rows whose P(harm) is at least 0.5; None where no row has one."""
    num_far: int | None
    """Rows farther from every anchor than all but 3 in 100 harmful anchors, the unfamiliar ones among them; None where
    distances are not read: without anchors, or by another measure than feature-shift."""
    label_first: tuple[int, ...]
    """Lines of the unfamiliar rows that it would help most to label, the most useful first."""
    harmful_answers: float | None = None
    """Estimated share of the rows with harm in an answer, 0 to 1; None where answers were not read."""
    answers_interval: tuple[float, float] | None = None
    """95 % interval of that share."""
    num_spans: int | None = None
    """Rows with a span that reads as harm, duplicates counted once; None where answers were not read."""
    measure: EvidenceKind
    model: str
    base: str | None
    """The model before alignment, where it was compared with."""
    warnings: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The result as plain values, with paths as text."""
        lists = {name: list(getattr(self, name)) for name in ("warnings", "label_first")}
        pairs = {name: _listed(getattr(self, name)) for name in ("interval", "answers_interval")}
        return dataclasses.asdict(self) | {"output": str(self.output)} | pairs | lists

    def to_stored(self) -> str:
        """The content of summary.json: its folder may be moved, and is named as ``.``."""
        return json.dumps(self.to_json() | {"output": "."}, indent=2) + "\n"


def stored_screening(folder: Path) -> ScreenResult:
    """The result of a complete screening.

    Raises:
        OutputError: summary.json is damaged.
    """
    try:
        plain = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        pairs = {name: _paired(plain.get(name)) for name in ("interval", "answers_interval")}
        kinds = {"measure": EvidenceKind(plain["measure"]), "verdict": Finding(plain["verdict"])}
        lists = {name: tuple(plain[name]) for name in ("warnings", "label_first")}
        return ScreenResult(**(plain | kinds | {"output": folder} | pairs | lists))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise OutputError(
            f"{folder / SUMMARY}: cannot be read ({error}). Run again with {setting('overwrite')}."
        ) from error


def _listed(pair: tuple[float, float] | None) -> list[float] | None:
    return None if pair is None else list(pair)


def _paired(numbers: list[float] | None) -> tuple[float, float] | None:
    return None if numbers is None else (numbers[0], numbers[1])
