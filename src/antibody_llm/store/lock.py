"""One process at a time in a run's folder.

The lock belongs to the operating system, which frees it however the process ends: what a killed run leaves is a file
that nobody holds, and the next one takes it over. In the file is who holds it, for whoever comes second.
"""

import json
import os
import socket
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from ..errors import OutputError
from ..events import warn
from ..files import try_lock, unwritable
from ..mentions import setting

LOCK = ".lock"
PATIENCE = 0.5
"""Seconds to keep asking for a lock: whoever only looks at it holds it for a moment."""


class FolderLock:
    """The lock of a folder; ``with`` takes it for a block.

    Args:
        folder: The run's folder; ``acquire`` makes it.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / LOCK
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether it is ours."""
        return self._descriptor is not None

    def acquire(self) -> None:
        """Take the lock, or take it over from a process that is gone.

        Raises:
            OutputError: another process holds it; says which. Or the folder cannot be written.
        """
        deadline = time.monotonic() + PATIENCE
        while not self.try_acquire():
            if time.monotonic() > deadline:
                raise self._refusal()
            time.sleep(0.02)

    def __enter__(self) -> "FolderLock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def refuse_if_held(self) -> None:
        """Look whether another process holds it; nothing is written.

        Raises:
            OutputError: it does.
        """
        try:
            descriptor = os.open(self.file, os.O_RDONLY)
        except OSError:
            return
        try:
            if not try_lock(descriptor, shared=True):
                raise self._refusal()
        except OSError:
            return
        finally:
            os.close(descriptor)

    def release(self) -> None:
        """Release the lock, if it is ours."""
        if self._descriptor is None:
            return
        with suppress(OSError):
            self.file.unlink()  # before it is given back: later it could be another's
        os.close(self._descriptor)
        self._descriptor = None

    def try_acquire(self) -> bool:
        """Take the lock if it is free, and return whether it was.

        Raises:
            OutputError: the folder cannot be written.
        """
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # removed in between, by a run that gave up
            return False
        except OSError as error:
            raise unwritable(self.file.parent, error) from error
        try:
            if not try_lock(descriptor) or not self._is_still(descriptor):
                os.close(descriptor)
                return False
        except OSError as error:
            warn(
                f"{self.file.parent}: cannot be locked here ({error.strerror}), so two processes that write to it "
                "would not notice each other."
            )
        with suppress(OSError):  # a full disk: the lock holds without saying who
            os.ftruncate(descriptor, 0)
            os.write(descriptor, _whoever().encode())
        self._descriptor = descriptor
        return True

    def _is_still(self, descriptor: int) -> bool:
        """Whether the locked file is the one of that name, and not one that its holder has just removed."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.file))
        except FileNotFoundError:
            return False

    def _refusal(self) -> OutputError:
        try:
            holder = json.loads(self.file.read_text(encoding="utf-8"))
            who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
        except (OSError, ValueError, LookupError, TypeError):
            who = "which one is not known"
        return OutputError(
            f"{self.file.parent}: another process is writing to it ({who}). Wait until it has ended, or stop it, and "
            f"run the same command again; or choose another {setting('output')}."
        )


def _whoever() -> str:
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}) + "\n"
