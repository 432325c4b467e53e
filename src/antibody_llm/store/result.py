"""What a finished run reports."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..mentions import setting

RESULT = "result.json"
"""The file that is written last: a run folder that holds it is complete."""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A row that was left out."""

    source: str
    line: int
    num_tokens: int
    """Length of a row that is too long; else 0."""
    why: str = "too long"
    """Why it was left out: ``too long``, ``control tokens`` where it spells some, or ``likely harm``."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run."""

    output: Path
    """The run's folder."""
    model: Path | None
    """The trained adapter or model: a folder that every verb takes as its model. None for an evaluation."""
    metrics: dict[str, float]
    """Training: the last logged values. Evaluation: each measure by name, 0 to 1."""
    seconds: float
    """Time of the process that finished the run, without what a killed one spent before."""
    num_rows: int
    """Rows trained on in an epoch, or completions measured."""
    num_steps: int = 0
    """Optimiser steps."""
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()
    """Why the result may not be what one takes it for, settings spelled as in Python."""

    def to_json(self) -> dict[str, Any]:
        """The result as plain values, with paths as text."""
        plain = asdict(self) | {"output": str(self.output), "model": None if self.model is None else str(self.model)}
        return plain | {"skipped": [asdict(row) for row in self.skipped], "warnings": list(self.warnings)}

    def to_stored(self, files: Sequence[str]) -> str:
        """The content of result.json: the paths are relative to the folder, which may be moved.

        Args:
            files: What the run made.
        """
        plain = self.to_json() | {"output": ".", "model": None if self.model is None else self.model.name}
        return json.dumps(plain | {"files": list(files)}, indent=2) + "\n"


def stored_result(folder: Path) -> RunResult:
    """The result of a complete run.

    Raises:
        OutputError: result.json is damaged.
    """
    try:
        plain = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        plain.pop("files", None)
        plain["skipped"] = tuple(Skipped(**row) for row in plain["skipped"])
        plain["warnings"] = tuple(plain.get("warnings", ()))  # runs of before have none
        plain["model"] = None if plain["model"] is None else folder / plain["model"]
        return RunResult(**(plain | {"output": folder}))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OutputError(
            f"{folder / RESULT}: cannot be read ({error}). Run again with {setting('overwrite', 'True')}."
        ) from error


def stored_files(folder: Path) -> list[str] | None:
    """The files that a complete run made, relative to its folder; None where there is no such list."""
    try:
        files = json.loads((folder / RESULT).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return files if isinstance(files, list) and all(isinstance(name, str) for name in files) else None
