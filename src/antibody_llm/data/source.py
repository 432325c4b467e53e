"""Rows and where they came from."""

from dataclasses import dataclass
from typing import Any

from .formats import fingerprint
from .records import Record


@dataclass(frozen=True)
class Source:
    """Rows, and what to call the place that they came from."""

    name: str
    records: list[Record]

    def described(self) -> dict[str, Any]:
        """Return what config.yaml says of the rows; the fingerprint shows when a file changed under its name."""
        return {"source": self.name, "num_rows": len(self.records), "sha256": fingerprint(self.records)}
