"""Rows and where they came from."""

from dataclasses import dataclass, field
from typing import Any

from ..events import warn
from .duplicates import repeats
from .formats import fingerprint, load_prompts, load_records
from .preferences import load_preferences
from .raw import RawRows
from .records import Record


@dataclass(frozen=True)
class Source:
    """Rows, and what to call the place that they came from."""

    name: str
    records: list[Record]
    rejected: tuple[Record, ...] = ()
    """Rows of pairs: each record with the answer that is not preferred; else none."""
    sha256: str = field(init=False)
    """Their fingerprint, which shows when a file changed under its name."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha256", fingerprint([*self.records, *self.rejected]))

    def described(self) -> dict[str, Any]:
        """Return what config.yaml says of the rows."""
        return {"source": self.name, "num_rows": len(self.records), "sha256": self.sha256}


def read_source(rows: RawRows, *, prompts: bool = False, upload: bool = False) -> Source:
    """Read rows.

    Args:
        rows: Where they come from.
        prompts: Whether the completion may be missing.
        upload: Whether they are a user's. A warning then counts those that repeat; all are used.

    Raises:
        DataError: a row cannot be used, or there is none; names source, line and field, and says how to fix it.
    """
    source = Source(rows.name, load_prompts(rows) if prompts else load_records(rows))
    if upload and (repeated := str(repeats(source.records))):
        warn(f"{source.name}: {repeated}. All are used.")
    return source


def read_pairs(rows: RawRows) -> Source:
    """Read rows of preferences, a user's; a warning counts those that repeat.

    Raises:
        DataError: as ``read_source``.
    """
    pairs = load_preferences(rows)
    source = Source(rows.name, [pair.preferred for pair in pairs], tuple(pair.non_preferred for pair in pairs))
    if repeated := str(repeats(source.records)):
        warn(f"{source.name}: {repeated}, by their preferred answers. All are used.")
    return source
