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
    measure: EvidenceKind
    model: str
    base: str | None
    """The model before alignment, where it was compared with."""
    warnings: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The result as plain values, with paths as text."""
        lists = {name: list(getattr(self, name)) for name in ("warnings", "label_first")}
        interval = None if self.interval is None else list(self.interval)
        return dataclasses.asdict(self) | {"output": str(self.output), "interval": interval} | lists

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
        interval = None if plain["interval"] is None else tuple(plain["interval"])
        kinds = {"measure": EvidenceKind(plain["measure"]), "verdict": Finding(plain["verdict"])}
        lists = {name: tuple(plain[name]) for name in ("warnings", "label_first")}
        return ScreenResult(**(plain | kinds | {"output": folder, "interval": interval} | lists))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OutputError(
            f"{folder / SUMMARY}: cannot be read ({error}). Run again with {setting('overwrite')}."
        ) from error
