"""A data file in any accepted format as canonical chat JSON Lines."""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data.convert import canonical
from ..data.duplicates import RepeatCounter
from ..data.formats import RowReader
from ..data.protocols import find_protocol, protocol_rows
from ..data.raw import raw_rows
from ..errors import OutputError
from ..events import inform, warned
from ..mentions import setting
from ..settings import ConvertSettings
from .verb import verb

NUM_LINES_KEPT = 100
NUM_KINDS_KEPT = 100
OTHERS = "other fields"


@dataclass
class Affected:
    """Rows in which the same was changed or left out."""

    what: str
    num_rows: int
    lines: list[int]
    """The first ``NUM_LINES_KEPT``."""

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.lines[:5])) + (", ..." if self.num_rows > 5 else "")
        return f"{self.what} ({self.num_rows} {'row' if self.num_rows == 1 else 'rows'}: line {shown})"


@dataclass(frozen=True)
class ConvertResult:
    """A finished conversion."""

    source: str
    output: Path
    format: str
    """The format of the rows that were read."""
    num_rows: int
    """All of them were written."""
    changed: list[Affected]
    dropped: list[Affected]
    repeats: str
    """What ``data.duplicates`` says of the rows; empty where none repeats."""
    num_repeats: int
    num_near_repeats: int
    warnings: tuple[str, ...] = ()
    """Settings spelled as in Python."""

    def to_json(self) -> dict[str, Any]:
        """The result as plain values, with paths as text."""
        return asdict(self) | {"output": str(self.output), "warnings": list(self.warnings)}

    def lines(self) -> list[str]:
        """The result in lines for a reader."""
        lines = [f"{self.output}", f"  rows        {self.num_rows} from {self.source}", f"  format      {self.format}"]
        if self.format in WITHOUT_MESSAGES:
            lines.append(f"  changed     {WITHOUT_MESSAGES[self.format]}")
        lines += [f"  changed     {affected}" for affected in self.changed]
        lines += [f"  left out    {affected}" for affected in self.dropped]
        return lines + ([f"  repeats     {self.repeats}"] if self.repeats else [])


WITHOUT_MESSAGES = {
    "prompt/completion": "prompt and completion became a user's and an assistant's message, their text as it was",
    "Alpaca": "instruction and input became one user's message, without the prompt text that is put around them",
}
"""What happens to every row of formats that are no chat."""


@verb(ConvertSettings)
def convert(settings: ConvertSettings) -> ConvertResult:
    """Write the rows of a data file as canonical chat JSON Lines, all or none.

    Args:
        settings: What to write where.

    Raises:
        DataError: a row cannot be used; as in training.
        OutputError: the output exists, is the input, or cannot be written.
    """
    source, output, overwrite = settings.source, settings.output, settings.overwrite
    place = _checked(Path(source), Path(output), overwrite)
    if settings.protocol is None:
        rows = raw_rows(source, split=settings.split)
    else:
        protocol, parity = find_protocol(settings.protocol), settings.parity
        rows = protocol_rows(
            source, protocol, split=settings.split, start=settings.start, num=settings.num, parity=parity
        )
        rule = protocol.parity_answer if parity else protocol.answer
        inform(f"compare answers with {setting('preference_judge') if rule is None else setting('answer', rule)}.")
    reader, repeats = RowReader(rows.name, trainable=True), RepeatCounter()
    changed: dict[str, Affected] = {}
    dropped: dict[str, Affected] = {}
    temporary = place.with_name(f".{place.name[:100]}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for row in reader.records(rows):
                assert reader.first is not None
                assert row.record is not None
                converted = canonical(row.record, row.raw, form=reader.first[1])
                file.write(converted.line())
                repeats.add(row.record)
                _count(changed, converted.changed, row.line)
                _count(dropped, converted.dropped, row.line)
            file.flush()
            os.fsync(file.fileno())
        _put(temporary, place, overwrite)
    except OSError as error:
        raise OutputError(f"{output}: cannot be written ({error.strerror}). Choose another place.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    assert reader.first is not None
    found = repeats.found
    return ConvertResult(
        source=str(source),
        output=Path(output),
        format=reader.first[1],
        num_rows=found.num_rows,
        changed=list(changed.values()),
        dropped=list(dropped.values()),
        repeats=str(found),
        num_repeats=len(found.exact),
        num_near_repeats=len(found.normalised),
        warnings=warned(),
    )


def _checked(source: Path, output: Path, overwrite: bool) -> Path:
    """The file to write, links followed."""
    try:
        place = output.expanduser().resolve()
        if place.is_dir():
            raise OutputError(f"{output}: a folder. Name a file, such as {output / 'rows.jsonl'}.")
        if source.exists() and place.exists() and place.samefile(source):
            raise OutputError(f"{output}: is the input, which is never overwritten. Name another file.")
        if place.exists() and not place.is_file():
            raise OutputError(f"{output}: no file that can be replaced. Name another file.")
        if place.exists() and not overwrite:
            raise _exists(output)
        if not place.parent.is_dir():
            raise OutputError(f"{output}: there is no folder {place.parent}. Make it first.")
    except (OSError, ValueError, RuntimeError) as error:
        raise OutputError(f"{str(output)[:300]!r}: cannot be written ({error}). Choose another place.") from None
    return place


def _exists(output: Path) -> OutputError:
    return OutputError(f"{output}: exists already. Name another file, or give {setting('overwrite')}.")


def _put(temporary: Path, place: Path, overwrite: bool) -> None:
    if overwrite:
        temporary.replace(place)
        return
    try:
        os.link(temporary, place)  # unlike a renaming, this fails where a file appeared in the meantime
    except FileExistsError:
        raise _exists(place) from None
    except OSError:  # a file system without links
        if place.exists():
            raise _exists(place) from None
        temporary.replace(place)


def _count(affected: dict[str, Affected], kinds: Iterable[str], line: int) -> None:
    for kind in kinds:
        if kind not in affected and len(affected) >= NUM_KINDS_KEPT:
            kind = OTHERS
        entry = affected.setdefault(kind, Affected(kind, 0, []))
        entry.num_rows += 1
        if len(entry.lines) < NUM_LINES_KEPT:
            entry.lines.append(line)
