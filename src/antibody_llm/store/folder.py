"""The folder of a run: what it holds, whether it is complete, and how one run replaces another.

    config.yaml       everything that decides the result, every default written out
    environment.json  versions, git commit, seed, device, threads
    checkpoints/      while it runs; removed when it is complete
    ...               what the verb makes: adapter/ or model/, metrics.jsonl, samples.parquet, evaluation.json
    result.json       written last; lists the files that the run made

The same configuration on the same folder goes on, or finds the stored result; another one is refused. With
``overwrite`` the new run grows in a hidden folder inside, ``.overwrite``, and replaces the old one when it is complete:
the files that the old run made, and no others, are removed. Notes, other runs and whatever else lies in the folder stay
where they are. One process at a time writes to a folder (lock.py).
"""

import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

import yaml

from ..errors import OutputError
from ..files import disk_errors, write_text
from ..mentions import setting
from ..models.names import PACKAGED
from ..paths import checked_output
from ..text import quoted
from .contents import (
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    MADE,
    METRICS,
    given_names,
    is_empty,
    remove_checkpoints,
    stored_config,
)
from .lock import FolderLock
from .replacing import OVERWRITE, is_ready, is_unfinished, put_in_place, refuse_in_the_way, replace
from .result import RESULT, RunResult

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
        final: Where it will be; another place than ``path`` only when something there is to be replaced.
        config: The run's configuration as config.yaml has it.
        state: What was found at ``path``.
        lock: The lock of ``final``; taken by ``begin``, released by ``finish`` and ``abandon``.
    """

    path: Path
    final: Path
    config: Mapping[str, Any]
    state: State
    lock: FolderLock

    def begin(self, environment: str) -> None:
        """Lock the folder and write config.yaml and environment.json; nothing is written before.

        Raises:
            OutputError: another process writes to the folder, or did since it was looked at; or nothing can be written.
        """
        self.lock.acquire()
        try:
            if _look(self.final, self.config, overwrite=self.path != self.final) != (self.path, self.state):
                raise OutputError(
                    f"{self.final}: another process wrote to it after this one had begun. Run the same command again: "
                    "it goes on from what is there now."
                )
            if self.state is State.PARTIAL:
                if not (self.path / ENVIRONMENT).is_file():  # killed right at the start
                    write_text(self.path / ENVIRONMENT, environment)
                return
            if self.path != self.final:
                shutil.rmtree(self.path, ignore_errors=True)
                with disk_errors(self.path):
                    self.path.mkdir()
            write_text(self.path / CONFIG, yaml.safe_dump(dict(self.config), sort_keys=False, allow_unicode=True))
            write_text(self.path / ENVIRONMENT, environment)
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Release the folder; remove what a run that failed before its first checkpoint has left.

        A corrected command can then follow."""
        if not self.lock.held:
            return
        checkpoints = self.path / CHECKPOINTS
        ours = {CONFIG, ENVIRONMENT, METRICS}
        made = {entry.name for entry in self.path.iterdir()} if self.path.is_dir() else set()
        begun = made & set(MADE) - ours - {CHECKPOINTS} or (checkpoints.is_dir() and any(checkpoints.iterdir()))
        if self.state is State.NEW and not begun:
            for name in ours:
                (self.path / name).unlink(missing_ok=True)
            for folder in (checkpoints, *([] if self.path == self.final else [self.path])):
                with suppress(OSError):  # absent, or something else is in it
                    folder.rmdir()
        self.lock.release()
        if self.state is State.NEW and not begun:
            with suppress(OSError):
                self.final.rmdir()

    def finish(self, result: RunResult) -> None:
        """Mark the run as complete, put it in its place, remove its checkpoints and release the folder."""
        write_text(self.path / RESULT, result.to_stored(sorted({RESULT, *given_names(self.path)})))
        try:
            if self.path != self.final:
                replace(self.final)
            else:
                remove_checkpoints(self.final)
        finally:
            self.lock.release()


def open_run(
    output: str | Path,
    config: Mapping[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
    inputs: Iterable[object] = (),
) -> RunFolder:
    """Look at ``output``; nothing is written, except that a replacement which a kill cut short is finished.

    Args:
        output: The run's folder; need not exist.
        config: What the run would be.
        resume: Insist that there is something to go on with, or a complete result.
        overwrite: Replace the run that is there.
        inputs: What the run reads; those that are paths must lie apart from the output.

    Raises:
        OutputError: no run can be written there: a file, another run, something that is no run, one of the inputs, a
            folder that another process writes to; or nothing to resume.
    """
    if resume and overwrite:
        raise OutputError(
            f"{output}: {setting('resume')} goes on with what is there, {setting('overwrite')} replaces it. Give "
            "one of them."
        )
    final = checked_output(output).absolute()
    config = yaml.safe_load(yaml.safe_dump(dict(config), sort_keys=False))  # as it will be read back
    lock = FolderLock(final)
    with disk_errors(final):
        refuse_inputs(final, inputs)
        if is_unfinished(final):
            with lock:
                put_in_place(final)
        if overwrite and is_ready(final, config):
            with lock:
                replace(final)
            return RunFolder(final, final, config, State.COMPLETE, lock)
        path, state = _look(final, config, overwrite=overwrite)
        if state is State.NEW and resume:
            raise OutputError(
                f"{final}: there is no run to resume. Leave {setting('resume')} out, or name the run's folder."
            )
        if state is State.COMPLETE:
            _tidy(final, lock)
        else:
            lock.refuse_if_held()
    return RunFolder(path, final, config, state, lock)


def _look(final: Path, config: Mapping[str, Any], *, overwrite: bool) -> tuple[Path, State]:
    """Where a run of this configuration would be written, and how far it has come there.

    Raises:
        OutputError: something else is in the way.
    """
    if overwrite:
        beside = final / OVERWRITE
        if stored_config(beside) == config:
            return beside, State.PARTIAL
        if is_empty(final):
            return final, State.NEW
        refuse_in_the_way(final)
        return beside, State.NEW
    if is_empty(final):
        return final, State.NEW
    stored = stored_config(final)
    if stored is None:
        names = sorted(entry.name for entry in final.iterdir())
        raise OutputError(
            f"{final}: holds something else than a run ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}). "
            f"Choose another folder, or give {setting('overwrite', 'True')}, which leaves that in place and puts the "
            "run beside it."
        )
    if stored != config:
        raise OutputError(
            f"{final}: holds a run of another configuration ({_differences(stored, config)}). Choose another folder, "
            f"or replace that run with {setting('overwrite', 'True')}."
        )
    return final, State.COMPLETE if (final / RESULT).is_file() else State.PARTIAL


def refuse_inputs(final: Path, inputs: Iterable[object]) -> None:
    """Refuse an output that is an input, holds it or lies inside it: that would change what the run reads.

    Raises:
        OutputError: it does.
    """
    real = final.resolve()
    for given in inputs:
        if not isinstance(given, str | Path) or not str(given).strip() or given in PACKAGED:
            continue
        try:
            read = Path(given).expanduser().resolve(strict=True)
        except (OSError, RuntimeError, ValueError):  # a Hub id, a name of the lab, or refused where it is read
            continue
        if real == read or real in read.parents or read in real.parents:
            how = "is" if real == read else "holds" if real in read.parents else "lies inside"
            raise OutputError(
                f"{final}: the output {how} an input of the run, {given}. Choose another {setting('output')}."
            )


def _differences(stored: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    there, here = _flat(stored), _flat(config)
    keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    some = keys[:NUM_DIFFERENCES_SHOWN]
    shown = [f"{key} is {quoted(there.get(key))} there, {quoted(here.get(key))} here" for key in some]
    return "; ".join(shown) + (f"; {len(keys) - len(shown)} more" if len(keys) > len(shown) else "")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _tidy(final: Path, lock: FolderLock) -> None:
    """Remove what a kill just before its end has left of a complete run."""
    with suppress(OutputError):  # not to be written to, which a complete run need not be
        if (lock.file.exists() or (final / CHECKPOINTS).is_dir()) and lock.try_acquire():
            remove_checkpoints(final)
            lock.release()
