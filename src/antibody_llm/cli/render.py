"""The events of a verb, on the terminal and in a file.

Bars are drawn on stderr if it is a terminal; notices are always printed there. ``--events`` writes every event as a
line of JSON.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from ..errors import OutputError
from ..events import Event, Listener, Notice, Progress, StepDone
from ..files import append, reason
from ..mentions import Spell
from ..paths import checked_output
from .options import as_flag


@contextmanager
def rendered(
    events: str | None = None, *, output: str | Path | None = None, spell: Spell = as_flag, log: bool = False
) -> Iterator[Listener]:
    """A listener for one verb, whose bar is removed at the end of the block, however that ends.

    Args:
        events: A file to append every event to.
        output: The verb's output folder, which must not contain that file.
        spell: The spelling of settings in notices.
        log: Where there is no bar, print a line for each piece of progress: of work that is made of few long pieces.

    Raises:
        OutputError: the file cannot be written, has other content than events, or is in the output folder.
    """
    with _Terminal(spell) as show, written(events, output) as write:

        def listen(event: Event) -> None:
            show(event)
            if log and isinstance(event, Progress) and not sys.stderr.isatty():
                print(f"[{event.done}/{event.total}] {event.what}", file=sys.stderr, flush=True)
            write(event)

        yield listen


@contextmanager
def written(events: str | None, output: str | Path | None) -> Iterator[Listener]:
    """A listener that appends every event to a file as a line of JSON, the whole line or nothing of it.

    Args:
        events: The file, or a pipe; None writes nothing.
        output: The verb's output folder, which must not contain the file.

    Raises:
        OutputError: the file cannot be written, has other content than events, or is in the output folder.
    """
    if events is None:
        yield lambda event: None
        return
    path = checked_output(events, "--events", folder=False)
    if path.is_dir():
        raise OutputError(f"{path}: this is a folder. Name a file, such as {path / 'events.jsonl'}.")
    if output is not None and Path(output).absolute() in path.absolute().parents:
        raise OutputError(f"{path}: this is inside --output, which holds the run alone. Name a file outside of it.")
    try:
        _refuse_other_content(path)
        file = FileIO(path, "ab")
    except OSError as error:
        raise _unwritable(path, error) from error

    def write(event: Event) -> None:
        line = json.dumps({"time": round(time.time(), 3)} | event.to_json()) + "\n"
        try:
            append(file, line.encode())
        except OSError as error:
            raise _unwritable(path, error) from error

    with file:
        yield write


class _Terminal:
    """A listener that draws the current work as one bar, and prints notices above it."""

    def __init__(self, spell: Spell) -> None:
        self.spell = spell
        self.console = Console(stderr=True)  # stdout is for --json
        self.bar: Bar | None = None

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def __call__(self, event: Event) -> None:
        match event:
            case Notice():
                print(event.spelled(self.spell), file=sys.stderr)
            case Progress():
                self._draw(event)
            case StepDone():
                self._move(event.step, event.max_steps, loss=f"loss {event.loss:.3f}")

    def _draw(self, event: Progress) -> None:
        if not self.console.is_terminal:
            return
        if self.bar is not None and self.bar.tasks[0].description == event.what:
            self._move(event.done, event.total)
        elif event.done < event.total:
            self._remove()
            columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
            self.bar = Bar(*columns, TextColumn("{task.fields[loss]}"), console=self.console, transient=True)
            self.bar.add_task(event.what, total=event.total, completed=event.done, loss="")
            self.bar.start()

    def _move(self, done: int, total: int, *, loss: str = "") -> None:
        if self.bar is None:
            return
        self.bar.update(self.bar.tasks[0].id, completed=done, loss=loss)
        if done >= total:
            self._remove()

    def _remove(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def _refuse_other_content(path: Path) -> None:
    """Refuse a file with other content, such as rows named by mistake; remove half a line that a crash has left."""
    content = path.read_bytes() if path.is_file() else b""
    if not content:
        return
    try:
        first = json.loads(content.partition(b"\n")[0])
    except (ValueError, RecursionError):
        first = None
    if not isinstance(first, dict) or not {"time", "event"} <= first.keys():
        raise OutputError(f"{path}: this has other content than events. Name another file.")
    if not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path}: events cannot be written ({reason(error)}). Check the path, free some space or name another file."
    )
