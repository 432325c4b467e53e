"""One run takes the place of another, in steps that can each be repeated after a kill.

``.overwrite`` becomes ``.replacing`` (one rename: from here on the new run counts), the old run's files are removed by
a list that was written beforehand, and the new files are moved, result.json last.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..files import reason, write_text
from ..mentions import setting
from .contents import CHECKPOINTS, MADE, files_below, is_real_folder, made_files, remove_checkpoints, stored_config
from .result import RESULT

OVERWRITE = ".overwrite"
"""Where a run grows that will replace another."""
REPLACING = ".replacing"
"""Where that run is once it is complete, while it is put in place."""
OLD_FILES = ".old-files.json"
"""A file in ``REPLACING``: what is still to be removed of the old run."""


def is_ready(final: Path, config: Mapping[str, Any]) -> bool:
    """Whether a run of this configuration is complete and was killed just before it took its place."""
    beside = final / OVERWRITE
    return (beside / RESULT).is_file() and stored_config(beside) == config


def is_unfinished(final: Path) -> bool:
    """Whether a kill cut a replacement short."""
    return (final / REPLACING).is_dir()


def replace(final: Path) -> None:
    """Put the complete run of ``OVERWRITE`` in the place of the one in ``final``.

    Raises:
        OutputError: it could not be; says where the new run is.
    """
    beside = final / OVERWRITE
    try:
        remove_checkpoints(beside)
        old = made_files(final)
        for name in files_below(beside):
            if name not in old and name != OLD_FILES and os.path.lexists(final / name):
                raise _in_the_way(final / name)
        write_text(beside / OLD_FILES, json.dumps(old))
        beside.rename(final / REPLACING)
    except (OSError, OutputError) as error:
        said = error.message if isinstance(error, OutputError) else f"{final}: cannot be replaced ({reason(error)})."
        raise OutputError(f"{said} The new run is complete, in {beside}.") from error
    put_in_place(final)


def put_in_place(final: Path) -> None:
    """Finish a replacement: remove the old run's files and move the new ones to where they belong.

    Raises:
        OutputError: the system refuses; says where the new run is.
    """
    replacing = final / REPLACING
    try:
        old = replacing / OLD_FILES
        if old.is_file():
            names = json.loads(old.read_text(encoding="utf-8"))
            for name in sorted(names, key=lambda name: name != RESULT):  # first: from now on it is not complete
                (final / name).unlink(missing_ok=True)
            _prune(final, names)
            old.unlink()
        for name in sorted(files_below(replacing), key=lambda name: name == RESULT):
            (final / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(replacing / name, final / name)
        shutil.rmtree(replacing)
    except OSError as error:
        raise OutputError(
            f"{final}: the new run is complete, in {replacing}, and could not be put in place ({reason(error)}). The "
            "same command goes on with that."
        ) from error


def refuse_in_the_way(final: Path) -> None:
    """Refuse a file of somebody else's with the name of one that the new run will make: it would stay in its place."""
    made = set(made_files(final))
    for name in MADE:
        path = final / name
        files = [f"{name}/{inside}" for inside in files_below(path)] if is_real_folder(path) else [name]
        foreign = [file for file in files if file not in made and os.path.lexists(final / file)]
        if name != CHECKPOINTS and foreign and len(foreign) == len(files):
            raise _in_the_way(final / foreign[0])


def _in_the_way(path: Path) -> OutputError:
    return OutputError(
        f"{path}: is in the way, and no run of ours made it. Move it elsewhere and run the same command again, or "
        f"choose another {setting('output')}."
    )


def _prune(final: Path, names: Sequence[str]) -> None:
    """Remove the folders that have become empty."""
    parents = {parent for name in names for parent in Path(name).parents if parent != Path()}
    for parent in sorted(parents, key=lambda parent: -len(parent.parts)):
        with suppress(OSError):
            (final / parent).rmdir()
