"""Paths that a user wrote, and what lies there: checked before anything is opened, and pipes read to their end."""

import os
import select
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ConfigError, DataError, OutputError
from .mentions import setting
from .text import quoted

MAX_NAME = 200
"""The most bytes of an output's name: the file system takes 255, and hidden names are longer (``.NAME.new-PID``)."""
MAX_PIPED = 2**30
"""The most bytes that are read from a pipe."""
PATIENCE = 30.0
"""Seconds to wait for the next byte of a pipe."""
OUTPUT = setting("output")


def checked_path(given: str | Path, name: str) -> Path:
    """The path with ``~`` written out. Whether anything is there is not checked.

    Args:
        given: The path as the user wrote it.
        name: What to call it in an error: ``mentions.setting("data")``, or ``data rows``.

    Raises:
        ConfigError: empty, not a path at all, or the operating system refuses to look there.
    """
    text = str(given)
    if not text.strip():
        raise ConfigError(f"{name} is empty. Name a file or a folder, or leave it out.")
    if "\0" in text:
        raise ConfigError(f"{name} is {quoted(text)}: no path has a NUL character in it.")
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"{name} is {quoted(text)}: there is no such user, whose home ~ would be.") from None
    try:
        if path.is_dir():
            with os.scandir(path) as entries:
                for entry in entries:
                    entry.stat(follow_symlinks=False)  # needs the right to search the folder, not just to read it
                    break
        else:
            path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # may be a Hub id, or something to be made
    except OSError as error:
        raise ConfigError(
            f"{name} is {quoted(text)}: it cannot be looked at ({error.strerror}). Check the path and its permissions."
        ) from error
    return path


def checked_output(given: str | Path, name: str = OUTPUT, *, folder: bool = True) -> Path:
    """The path of a file or folder that is to be made or replaced, with ``~`` written out.

    Args:
        given: The path as the user wrote it.
        name: What to call it in an error.
        folder: Whether it is to be a folder; a file in its place is then refused.

    Raises:
        OutputError: nothing can be made there.
        ConfigError: the path is refused by ``checked_path``.
    """
    path = checked_path(given, name)
    whole = path.absolute()
    if whole.name in ("", ".."):
        raise OutputError(f"{name} is {quoted(str(given))}: it has no name of its own. Name a folder to make.")
    if len(os.fsencode(whole.name)) > MAX_NAME:
        raise OutputError(f"{name} is {quoted(str(given))}: a name has at most {MAX_NAME} bytes here.")
    if folder and whole.exists() and not whole.is_dir():
        raise OutputError(f"{name} is {quoted(str(given))}: a file is there. Name a folder.")
    if folder and whole.is_symlink() and not whole.exists():
        raise OutputError(
            f"{name} is {quoted(str(given))}: a link to a folder that is not there. Make that folder first."
        )
    above = next(parent for parent in whole.parents if os.path.lexists(parent))
    if not above.is_dir():
        raise OutputError(f"{name} is {quoted(str(given))}: {above} is not a folder, so nothing can lie below it.")
    if not whole.exists() and not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(f"{name} is {quoted(str(given))}: {above} cannot be written to. Choose another place.")
    return path


@contextmanager
def as_file(path: Path) -> Iterator[Path]:
    """``path`` itself, or a temporary file with everything that came out of it where it is a pipe.

    Rows are read more than once, and a pipe gives them once.

    Raises:
        DataError: a device or a socket; or a pipe into which nobody writes, or too much.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        yield path  # the reader says that there is no such file
        return
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        yield path
        return
    if not stat.S_ISFIFO(mode):
        raise DataError(f"{path}: a device or a socket, not a file. Save what it gives as a file and name that.")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        try:
            with copy.open("wb") as file:
                for piece in _piped(path):
                    file.write(piece)
        except OSError as error:
            raise DataError(f"{path}: the pipe cannot be copied to {folder} ({error.strerror}).") from error
        yield copy


def _piped(path: Path) -> Iterator[bytes]:
    """What comes out of a pipe, until its writers have closed it."""
    # Without O_NONBLOCK opening would wait for a writer, forever if need be.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        taken = 0
        while True:
            if not poll.poll(1000 * PATIENCE):
                what = "nothing more came" if taken else "nobody wrote into it"
                raise DataError(f"{path}: a pipe, and {what} for {PATIENCE:g} seconds. Save the rows as a file.")
            piece = os.read(descriptor, 2**20)
            if not piece:
                return
            taken += len(piece)
            if taken > MAX_PIPED:
                raise DataError(f"{path}: a pipe that gives more than {MAX_PIPED} bytes. Save the rows as a file.")
            yield piece
    finally:
        os.close(descriptor)
