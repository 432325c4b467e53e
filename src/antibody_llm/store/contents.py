"""What lies in the folder of a run: the names that runs give, and which files a run made."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from ..files import TEMPORARY
from ..models.names import PROVENANCE
from ..training.checkpoints import STAGING
from .lock import LOCK
from .result import RESULT, stored_files

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
OF_CHECKPOINTS = ("checkpoint-", STAGING)
"""How names in ``CHECKPOINTS`` begin."""
WEIGHTS = ("adapter", "model")
MADE = (
    *(CONFIG, ENVIRONMENT, METRICS, "samples.parquet", "evaluation.json", "completions.parquet", "answers.jsonl"),
    *("rows.jsonl", "rows.parquet", "summary.json", "report.html", RESULT, CHECKPOINTS, *WEIGHTS),
)
"""Names of what a run of any verb makes in its folder. Anything with another name is not the run's."""


def is_empty(folder: Path) -> bool:
    """Whether nothing is there but what a killed run can leave before it begins."""
    return not folder.is_dir() or all(
        entry.name == LOCK or (entry.name.startswith(".") and entry.suffix == TEMPORARY) for entry in folder.iterdir()
    )


def stored_config(folder: Path) -> dict[str, Any] | None:
    """The configuration of the run in a folder; None where there is no run of ours."""
    try:
        stored = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return stored if isinstance(stored, dict) and "verb" in stored else None


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a run, and their folder unless something else is in it."""
    checkpoints = folder / CHECKPOINTS
    if not is_real_folder(checkpoints):
        return
    for entry in checkpoints.iterdir():
        if entry.name.startswith(OF_CHECKPOINTS):
            shutil.rmtree(entry, ignore_errors=True)
    with suppress(OSError):  # something else is in it
        checkpoints.rmdir()


def made_files(final: Path) -> list[str]:
    """The files that the run in a folder made, relative to it, and nobody else.

    A run that was not completed has no list: then files with the names that we give count, weights only where our own
    note lies beside them.
    """
    if stored_config(final) is None:
        return []
    listed = stored_files(final)
    if listed is None:
        listed = [
            name
            for name in given_names(final)
            if _top(name) not in WEIGHTS or (final / _top(name) / PROVENANCE).is_file()
        ]
    checkpoints = final / CHECKPOINTS
    if is_real_folder(checkpoints):
        ours = (name for name in files_below(checkpoints) if name.startswith(OF_CHECKPOINTS))
        listed += [f"{CHECKPOINTS}/{name}" for name in ours]
    return [name for name in listed if _is_inside(final, name)]


def given_names(folder: Path) -> list[str]:
    """The files of a folder that have a name of ``MADE`` or lie below one, without checkpoints."""
    found = []
    for name in MADE:
        path = folder / name
        if is_real_folder(path):
            found += [f"{name}/{inside}" for inside in files_below(path) if name != CHECKPOINTS]
        elif path.is_file() and not path.is_symlink():
            found.append(name)
    return found


def _is_inside(final: Path, name: str) -> bool:
    """Whether a name of a list, which somebody may have written by hand, is of a file of ours below ``final``."""
    parts = Path(name).parts
    above = [final.joinpath(*parts[:num]) for num in range(1, len(parts))]
    return bool(parts) and parts[0] in MADE and ".." not in parts and not any(path.is_symlink() for path in above)


def files_below(folder: Path) -> list[str]:
    """Every file below a folder, links included and not followed, relative to it."""
    found = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found += [(Path(place) / name).relative_to(folder).as_posix() for name in (*files, *links)]
    return sorted(found)


def _top(name: str) -> str:
    return name.partition("/")[0]


def is_real_folder(path: Path) -> bool:
    """Whether a folder is there, and not a link to one."""
    return path.is_dir() and not path.is_symlink()
