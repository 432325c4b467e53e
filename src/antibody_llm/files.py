"""Writing that is whole or absent, and locks that the system frees when a process is killed.

A file is written under a hidden name beside its own, flushed to disk, and renamed: whoever reads it, at any moment and
after any kill, finds the whole new file or what was there before. An error of the disk becomes an ``OutputError``.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import RawIOBase
from pathlib import Path

from .errors import OutputError
from .mentions import setting

TEMPORARY = ".tmp"
"""How the name of a file ends while it is written; it then also begins with a dot."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write to, which becomes ``path`` if the block ends well and is removed if not.

    Raises:
        OutputError: the disk is full, the folder cannot be written, or ``path`` is a device, a pipe or a socket, which
            a rename would replace.
    """
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: not a file, and what is there would be replaced. Name a file.")
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, Exception) and from_the_disk(error):
            raise unwritable(path, error) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole; if that fails, what was there before is unchanged.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append(file: RawIOBase, data: bytes) -> None:
    """Append all of ``data`` or nothing of it.

    Args:
        file: Opened for appending, without a buffer.
        data: Whole lines.

    Raises:
        OSError: the disk is full, or whoever read a pipe is gone.
    """
    size = file.tell() if file.seekable() else None
    if file.write(data) != len(data):
        if size is not None:
            file.truncate(size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Inside, an error of the disk is an ``OutputError`` that names ``path``."""
    try:
        yield
    except Exception as error:
        if not from_the_disk(error):
            raise
        raise unwritable(path, error) from error


def from_the_disk(error: Exception) -> bool:
    """Whether reading or writing failed, rather than our code.

    safetensors has an error of its own for it, tokenizers a bare ``Exception`` (both end with "(os error 28)"), and
    torch's writer a ``RuntimeError``.
    """
    return isinstance(error, OSError) or "(os error " in str(error) or _from_torchs_writer(error)


def reason(error: Exception) -> str:
    """Why writing failed, in a few words."""
    if _from_torchs_writer(error):  # "unexpected pos 576 vs 534"
        return "a file could not be written to its end, as on a full disk"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)  # pyarrow's own text names the temporary file
    return str(error) or type(error).__name__


def _from_torchs_writer(error: Exception) -> bool:
    signs = ("inline_container.cc", "PytorchStreamWriter", "iostream error")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def unwritable(path: Path, error: Exception) -> OutputError:
    """The error for a file or folder that could not be written."""
    return OutputError(
        f"{path}: cannot be written ({reason(error)}). Free some space or choose another {setting('output')}; what was "
        "there before is unchanged."
    )


def flush(*paths: Path) -> None:
    """Flush files, or the entries of folders, to the disk before a rename makes them count."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# -- locks ---------------------------------------------------------------------------------------------------------


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file or folder until the descriptor is closed, by whatever end of the process; False: it is held.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Inside, ``is_held(folder)`` is true for every process, under whatever name the folder then has."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            try_lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def is_held(folder: Path) -> bool:
    """Whether a living process is inside ``held(folder)``; true where that cannot be known."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return True
    try:
        return not try_lock(descriptor)
    except OSError:
        return True
    finally:
        os.close(descriptor)
