"""Files to be made, which are checked before any work and written whole."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..files import write_text
from ..mentions import setting
from ..paths import checked_output


def new_files(
    named: Sequence[tuple[str, str | Path]], *, overwrite: bool, inputs: Sequence[str | Path | None] = ()
) -> list[Path]:
    """The paths of new files, each in a folder that exists.

    Args:
        named: The name of each setting, and its file.
        overwrite: Whether a file that exists is replaced.
        inputs: Files that are read, and never replaced.

    Raises:
        OutputError: a file is a folder, exists already, is an input, has no folder, or is named twice.
    """
    files = [checked_output(path, setting(name), folder=False) for name, path in named]
    seen: dict[Path, str] = {}
    for (name, _), file in zip(named, files, strict=True):
        if (other := seen.setdefault(file.resolve(), name)) != name:
            raise OutputError(
                f"{file}: {setting(other)} and {setting(name)} are one file. Give each a file of its own."
            )
    given = {Path(source).resolve() for source in inputs if source is not None}
    for file in files:
        if file.exists() and overwrite and file.resolve() in given:
            raise OutputError(f"{file} is the input, which is never overwritten. Name another file.")
        if file.is_dir():
            raise OutputError(f"{file}: this is a folder. Name a file, such as {file / 'rows.jsonl'}.")
        if file.exists() and not overwrite:
            raise OutputError(f"{file}: exists already. Name another file, or give {setting('overwrite', 'True')}.")
        if not file.parent.is_dir():
            raise OutputError(f"{file}: there is no folder {file.parent}. Create it first.")
    return files


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON Lines. A link's target is written, and the link remains."""
    write_text(file.resolve(), "".join(json.dumps(row) + "\n" for row in rows))
