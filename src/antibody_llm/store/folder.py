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

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

import yaml

from ..errors import OutputError
from ..files import TEMPORARY, disk_errors, reason, write_text
from ..mentions import setting
from ..models.loading import PACKAGED, PROVENANCE
from ..paths import checked_output
from ..text import quoted
from ..training.checkpoints import STAGING
from .lock import LOCK, FolderLock
from .result import RESULT, RunResult, stored_files

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
OF_CHECKPOINTS = ("checkpoint-", STAGING)
"""How names in ``CHECKPOINTS`` begin."""
WEIGHTS = ("adapter", "model")
MADE = (
    *(CONFIG, ENVIRONMENT, METRICS, "samples.parquet", "evaluation.json", "completions.parquet"),
    *("rows.jsonl", "rows.parquet", "summary.json", "report.html", RESULT, CHECKPOINTS, *WEIGHTS),
)
"""Names of what a run of any verb makes in its folder. What bears another name is not the run's."""
OVERWRITE = ".overwrite"
"""Where a run grows that will replace another."""
REPLACING = ".replacing"
"""The same once it is complete, while it is put in place."""
OLD_FILES = ".old-files.json"
"""In ``REPLACING``: what is still to be removed of the old run."""
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
        config: The run's configuration as it stands in config.yaml.
        state: What was found at ``path``.
        lock: Of ``final``; taken by ``begin``, given back by ``finish`` and ``abandon``.
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
        """Give the folder back; remove what a run that failed before its first checkpoint has left, so that a
        corrected command can follow."""
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
        """Mark the run as complete, put it in its place, remove its checkpoints and give the folder back."""
        write_text(self.path / RESULT, result.to_stored(sorted({RESULT, *_given_names(self.path)})))
        try:
            if self.path != self.final:
                _replace(self.final)
            else:
                _remove_checkpoints(self.final)
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
        if _is_unfinished(final):
            with lock:
                _put_in_place(final)
        if overwrite and _is_ready(final, config):
            with lock:
                _replace(final)
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


# -- what is there -------------------------------------------------------------------------------------------------


def _look(final: Path, config: Mapping[str, Any], *, overwrite: bool) -> tuple[Path, State]:
    """Where a run of this configuration would be written, and how far it has come there.

    Raises:
        OutputError: something else is in the way.
    """
    if overwrite:
        beside = final / OVERWRITE
        if _stored_config(beside) == config:
            return beside, State.PARTIAL
        if _is_empty(final):
            return final, State.NEW
        _refuse_in_the_way(final)
        return beside, State.NEW
    if _is_empty(final):
        return final, State.NEW
    stored = _stored_config(final)
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


def _is_empty(folder: Path) -> bool:
    """Nothing there, save what a killed run can leave before it has begun."""
    return not folder.is_dir() or all(
        entry.name == LOCK or (entry.name.startswith(".") and entry.suffix == TEMPORARY) for entry in folder.iterdir()
    )


def _stored_config(folder: Path) -> dict[str, Any] | None:
    """The configuration of the run in a folder; None where there is no run of ours."""
    try:
        stored = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return stored if isinstance(stored, dict) and "verb" in stored else None


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


def _refuse_in_the_way(final: Path) -> None:
    """What the old run did not make stays in place, so it must not bear the name of what the new one will make."""
    made = set(_made(final))
    for name in MADE:
        path = final / name
        files = [f"{name}/{inside}" for inside in _files_below(path)] if _is_real_folder(path) else [name]
        foreign = [file for file in files if file not in made and os.path.lexists(final / file)]
        if name != CHECKPOINTS and foreign and len(foreign) == len(files):
            raise _in_the_way(final / foreign[0])


def _in_the_way(path: Path) -> OutputError:
    return OutputError(
        f"{path}: is in the way, and no run of ours made it. Move it elsewhere and run the same command again, or "
        f"choose another {setting('output')}."
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


def _remove_checkpoints(folder: Path) -> None:
    checkpoints = folder / CHECKPOINTS
    if not _is_real_folder(checkpoints):
        return
    for entry in checkpoints.iterdir():
        if entry.name.startswith(OF_CHECKPOINTS):
            shutil.rmtree(entry, ignore_errors=True)
    with suppress(OSError):  # something else is in it
        checkpoints.rmdir()


def _tidy(final: Path, lock: FolderLock) -> None:
    """Remove what a kill just before its end has left of a complete run."""
    with suppress(OutputError):  # not to be written to, which a complete run need not be
        if (lock.file.exists() or (final / CHECKPOINTS).is_dir()) and lock.try_acquire():
            _remove_checkpoints(final)
            lock.release()


# -- replacing -----------------------------------------------------------------------------------------------------
#
# .overwrite -> .replacing (one rename: from here on the new run counts) -> the old run's files are removed, by a list
# that was written beforehand -> the new files are moved, result.json last. Each step can be repeated after a kill.


def _is_ready(final: Path, config: Mapping[str, Any]) -> bool:
    """Whether a run of this configuration is complete and was killed just before it took its place."""
    beside = final / OVERWRITE
    return (beside / RESULT).is_file() and _stored_config(beside) == config


def _is_unfinished(final: Path) -> bool:
    return (final / REPLACING).is_dir()


def _replace(final: Path) -> None:
    """Put the complete run of ``OVERWRITE`` in the place of the one in ``final``.

    Raises:
        OutputError: it could not be; says where the new run is.
    """
    beside = final / OVERWRITE
    try:
        _remove_checkpoints(beside)
        old = _made(final)
        for name in _files_below(beside):
            if name not in old and name != OLD_FILES and os.path.lexists(final / name):
                raise _in_the_way(final / name)
        write_text(beside / OLD_FILES, json.dumps(old))
        beside.rename(final / REPLACING)
    except (OSError, OutputError) as error:
        said = error.message if isinstance(error, OutputError) else f"{final}: cannot be replaced ({reason(error)})."
        raise OutputError(f"{said} The new run is complete, in {beside}.") from error
    _put_in_place(final)


def _put_in_place(final: Path) -> None:
    replacing = final / REPLACING
    try:
        old = replacing / OLD_FILES
        if old.is_file():
            names = json.loads(old.read_text(encoding="utf-8"))
            for name in sorted(names, key=lambda name: name != RESULT):  # first: from now on it is not complete
                (final / name).unlink(missing_ok=True)
            _prune(final, names)
            old.unlink()
        for name in sorted(_files_below(replacing), key=lambda name: name == RESULT):
            (final / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(replacing / name, final / name)
        shutil.rmtree(replacing)
    except OSError as error:
        raise OutputError(
            f"{final}: the new run is complete, in {replacing}, and could not be put in place ({reason(error)}). The "
            "same command goes on with that."
        ) from error


def _made(final: Path) -> list[str]:
    """The files that the run in a folder made, relative to it, and nobody else.

    A run that was not completed has no list: then what bears the names that we give, weights only where our own note
    lies beside them.
    """
    if _stored_config(final) is None:
        return []
    listed = stored_files(final)
    if listed is None:
        listed = [
            name
            for name in _given_names(final)
            if _top(name) not in WEIGHTS or (final / _top(name) / PROVENANCE).is_file()
        ]
    checkpoints = final / CHECKPOINTS
    if _is_real_folder(checkpoints):
        ours = (name for name in _files_below(checkpoints) if name.startswith(OF_CHECKPOINTS))
        listed += [f"{CHECKPOINTS}/{name}" for name in ours]
    return [name for name in listed if _is_inside(final, name)]


def _given_names(folder: Path) -> list[str]:
    """The files of a folder that bear a name of ``MADE`` or lie below one, checkpoints left out."""
    found = []
    for name in MADE:
        path = folder / name
        if _is_real_folder(path):
            found += [f"{name}/{inside}" for inside in _files_below(path) if name != CHECKPOINTS]
        elif path.is_file() and not path.is_symlink():
            found.append(name)
    return found


def _is_inside(final: Path, name: str) -> bool:
    """Whether a name of a list, which somebody may have written by hand, is of a file of ours below ``final``."""
    parts = Path(name).parts
    above = [final.joinpath(*parts[:num]) for num in range(1, len(parts))]
    return bool(parts) and parts[0] in MADE and ".." not in parts and not any(path.is_symlink() for path in above)


def _files_below(folder: Path) -> list[str]:
    """Every file below a folder, links included and not followed, relative to it."""
    found = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found += [(Path(place) / name).relative_to(folder).as_posix() for name in (*files, *links)]
    return sorted(found)


def _prune(final: Path, names: Sequence[str]) -> None:
    """Remove the folders that have become empty."""
    parents = {parent for name in names for parent in Path(name).parents if parent != Path()}
    for parent in sorted(parents, key=lambda parent: -len(parent.parts)):
        with suppress(OSError):
            (final / parent).rmdir()


def _top(name: str) -> str:
    return name.partition("/")[0]


def _is_real_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
