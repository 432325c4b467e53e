"""The folder of a run: what it holds, whether it is complete, and how one takes another's place.

    config.yaml       everything that decides the result, every default written out
    environment.json  versions, git commit, seed, device, threads
    checkpoints/      while it runs; removed when it is complete
    ...               what the verb makes: adapter/ or model/, metrics.jsonl, samples.parquet, evaluation.json
    result.json       written last

The same configuration on the same folder goes on, or finds the stored result; another one is refused. With
``overwrite`` the new run grows in a hidden folder beside, ``.NAME.overwrite``, and takes the old one's place when it is
complete. An earlier run is then deleted; anything else is moved to ``NAME.replaced`` and never deleted.
"""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

import yaml

from ..errors import OutputError
from .result import RESULT, RunResult

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
NUM_DIFFERENCES_SHOWN = 3


class State(Enum):
    """How far a run has come."""

    NEW = auto()
    PARTIAL = auto()
    COMPLETE = auto()


@dataclass(frozen=True)
class RunFolder:
    """A folder to run in.

    Attributes:
        path: Where the run is written.
        final: Where it will stand; another place than ``path`` only when something there is to be replaced.
        config: The run's configuration as it stands in config.yaml.
        state: What was found at ``path``.
    """

    path: Path
    final: Path
    config: Mapping[str, Any]
    state: State

    def begin(self, environment: str) -> None:
        """Make the folder, with config.yaml and environment.json; nothing is written before."""
        if self.state is State.PARTIAL:
            return
        try:
            if self.path != self.final:
                shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        write_text(self.path / CONFIG, yaml.safe_dump(dict(self.config), sort_keys=False, allow_unicode=True))
        write_text(self.path / ENVIRONMENT, environment)

    def abandon(self) -> None:
        """Remove what a run that failed before its first checkpoint has left, so that a mended command can follow."""
        checkpoints = self.path / CHECKPOINTS
        ours = {CONFIG, ENVIRONMENT, METRICS, CHECKPOINTS}
        made = {entry.name for entry in self.path.iterdir()} if self.path.is_dir() else set()
        if self.state is not State.NEW or made - ours or (checkpoints.is_dir() and any(checkpoints.iterdir())):
            return
        for name in (CONFIG, ENVIRONMENT, METRICS):
            (self.path / name).unlink(missing_ok=True)
        for folder in (checkpoints, self.path):
            with suppress(OSError):  # absent, or something else is in it
                folder.rmdir()

    def finish(self, result: RunResult) -> None:
        """Mark the run as complete, put it in its place and remove its checkpoints."""
        write_text(self.path / RESULT, result.to_stored())
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)
        if self.path != self.final:
            _take_the_place_of(self.final, self.path)


def open_run(
    output: str | Path, config: Mapping[str, Any], *, resume: bool = False, overwrite: bool = False
) -> RunFolder:
    """Look at ``output``; nothing is written.

    Args:
        output: The run's folder; need not exist.
        config: What the run would be.
        resume: Insist that there is something to go on with, or a complete result.
        overwrite: Replace what is there.

    Raises:
        OutputError: a file stands there, another run, something that is no run, or nothing to resume.
    """
    if resume and overwrite:
        raise OutputError(f"{output}: --resume goes on with what is there, --overwrite replaces it. Give one of them.")
    final = Path(output).expanduser().absolute()
    config = yaml.safe_load(yaml.safe_dump(dict(config), sort_keys=False))  # as it will be read back
    if final.exists() and not final.is_dir():
        raise OutputError(f"{final}: a file stands there. Name a folder.")
    if overwrite:
        return _open_beside(final, config)
    if _is_empty(final):
        if resume:
            raise OutputError(f"{final}: there is no run to resume. Leave --resume out, or name the run's folder.")
        return RunFolder(final, final, config, State.NEW)
    stored = _stored_config(final)
    if stored is None:
        names = sorted(entry.name for entry in final.iterdir())
        raise OutputError(
            f"{final}: holds something else than a run ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}). "
            "Choose another folder, or give --overwrite, which moves it aside."
        )
    if stored != config:
        raise OutputError(
            f"{final}: holds a run of another configuration ({_differences(stored, config)}). Choose another folder, "
            "or replace that run with --overwrite."
        )
    return RunFolder(final, final, config, State.COMPLETE if (final / RESULT).is_file() else State.PARTIAL)


def write_text(path: Path, text: str) -> None:
    """The whole file or what was there before.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unwritable(path, error) from error


def _open_beside(final: Path, config: Mapping[str, Any]) -> RunFolder:
    beside = final.with_name(f".{final.name}.overwrite")
    if _stored_config(beside) == config:
        if (beside / RESULT).is_file():  # killed just before it took its place
            _take_the_place_of(final, beside)
            return RunFolder(final, final, config, State.COMPLETE)
        return RunFolder(beside, final, config, State.PARTIAL)
    if _is_empty(final):
        return RunFolder(final, final, config, State.NEW)
    return RunFolder(beside, final, config, State.NEW)


def _take_the_place_of(old: Path, new: Path) -> None:
    """Rename ``new`` to ``old``; what was there is deleted if it is a run, else kept as NAME.replaced."""
    aside = next(p for p in (_replaced(old, n) for n in range(1, 10_000)) if not p.exists())
    try:
        if old.exists():
            old.rename(aside)
        try:
            new.rename(old)
        except OSError:
            if aside.exists():
                with suppress(OSError):
                    aside.rename(old)
            raise
    except OSError as error:
        kept = f"is now {aside}" if aside.exists() else "is unchanged"
        raise OutputError(
            f"{old}: cannot be replaced ({error.strerror}). What was there {kept} and the new run is whole, in {new}."
        ) from error
    if aside.exists() and (_stored_config(aside) is not None or _is_empty(aside)):
        shutil.rmtree(aside, ignore_errors=True)


def _replaced(folder: Path, number: int) -> Path:
    return folder.with_name(f"{folder.name}.replaced" + (f"-{number}" if number > 1 else ""))


def _is_empty(folder: Path) -> bool:
    """Nothing there, save a file that a killed run had under its temporary name."""
    return not folder.is_dir() or all(p.name.startswith(".") and p.suffix == ".tmp" for p in folder.iterdir())


def _stored_config(folder: Path) -> dict[str, Any] | None:
    """The configuration of the run in a folder; None where there is no run of ours."""
    try:
        stored = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return stored if isinstance(stored, dict) and "verb" in stored else None


def _differences(stored: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    there, here = _flat(stored), _flat(config)
    keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    shown = [f"{key} is {there.get(key)!r} there, {here.get(key)!r} here" for key in keys[:NUM_DIFFERENCES_SHOWN]]
    return "; ".join(shown) + (f"; {len(keys) - len(shown)} more" if len(keys) > len(shown) else "")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path}: cannot be written ({error.strerror or error}). Free some space or choose another --output; what was "
        "there before is unchanged."
    )
