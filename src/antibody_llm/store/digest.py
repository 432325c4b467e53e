"""SHA-256 of files, those of large models remembered.

Whole files are read: a sample would miss a change between its places, and times and sizes call a copy changed. The
digest of a large file (10 s for 16 GB) is kept in the user's cache under what the system says of the file: device,
inode, size, and the times of its last change, of which the second moves with any write and cannot be set back.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from ..files import write_text
from ..screening.cache import cache_folder

LARGE = 64 * 2**20
"""Bytes from which a digest is remembered; below, it takes a tenth of a second at most."""
SETTLED = 2.0
"""Seconds since the last change, below which one more could follow within the same tick of the clock."""


def file_digest(file: Path) -> str:
    """The SHA-256 of the whole content of a file, hex."""
    status = file.stat()
    if status.st_size < LARGE:
        return _read(file)
    seen = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    name = hashlib.sha256(os.fsencode(file.resolve())).hexdigest()
    remembered = cache_folder() / "digests" / f"{name}.json"
    with suppress(OSError, ValueError, LookupError, TypeError):
        stored = json.loads(remembered.read_text(encoding="utf-8"))
        if stored["seen"] == seen:
            return str(stored["sha256"])
    digest = _read(file)
    if time.time() - max(status.st_mtime, status.st_ctime) > SETTLED and file.stat().st_ctime_ns == status.st_ctime_ns:
        with suppress(Exception):  # without a cache it is read again
            remembered.parent.mkdir(parents=True, exist_ok=True)
            write_text(remembered, json.dumps({"file": str(file), "seen": seen, "sha256": digest}) + "\n")
    return digest


def _read(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
