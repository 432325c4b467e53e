"""Bytes of files and weights, through fsspec: a local folder by default, S3 and others by URL.

A key is made here, never from a name that a customer gave. A blob is whole or absent: local ones are written under
another name, flushed and renamed; object stores show an object when its last part has arrived.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from ..errors import ConfigError
from ..files import flush
from .ids import new_id

COPY_BYTES = 2**20


class Blobs:
    """A store of blobs.

    Args:
        url: A folder, or an fsspec URL such as ``s3://BUCKET/PREFIX``. Credentials and endpoints are fsspec's own
            (environment or its configuration files).
        options: Options of fsspec that replace those.
    """

    def __init__(self, url: str, **options: Any) -> None:
        try:
            self.system, self.root = fsspec.core.url_to_fs(url, **options)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"blobs: {error}. Install the file system's package, or correct the URL.") from None
        self.url = url
        protocol = self.system.protocol
        self.is_local = "file" in ((protocol,) if isinstance(protocol, str) else protocol)
        if self.is_local:
            try:
                Path(self.root).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"blobs: {self.root} cannot be made ({error.strerror}). Check its rights.") from None

    def new_key(self, kind: str) -> str:
        """A key that no blob has: ``kind/ab/abcdef...``."""
        name = new_id("")
        return f"{kind}/{name[:2].lower()}/{name}"

    @contextmanager
    def writing(self, key: str) -> Iterator[BinaryIO]:
        """A file whose content is the blob once the block ends well, and that leaves nothing where it raises."""
        if not self.is_local:
            file = self.system.open(self._path(key), "wb")
            try:
                yield file
            except BaseException:
                with suppress(Exception):
                    file.discard()  # an object store forgets the parts that have arrived
                    file.closed = True  # or fsspec would write the rest when it collects the file
                with suppress(Exception):
                    self.system.rm(self._path(key))
                raise
            file.close()
            return
        path = Path(self._path(key))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            flush(path.parent, path.parent.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise

    def open(self, key: str) -> BinaryIO:
        """The blob, to be read and closed.

        Raises:
            FileNotFoundError: there is none.
        """
        file: BinaryIO = self.system.open(self._path(key), "rb")
        return file

    def chunks(self, key: str) -> Iterator[bytes]:
        """The blob, a piece at a time."""
        with self.open(key) as file:
            while piece := file.read(COPY_BYTES):
                yield piece

    def exists(self, key: str) -> bool:
        """Whether there is a blob of that key."""
        return bool(self.system.exists(self._path(key)))

    def older(self, kind: str, than: float) -> set[str]:
        """Keys and prefixes of a kind whose every byte was written before a time, half-written ones included."""
        found: dict[str, float] = {}
        with suppress(FileNotFoundError):
            for name, entry in self.system.find(self._path(kind), detail=True).items():
                key = "/".join(name[len(self.root.rstrip("/")) + 1 :].split("/")[:3])
                found[key] = max(found.get(key, 0.0), _written_at(entry))
        return {key for key, at in found.items() if at < than}

    def delete(self, key: str) -> None:
        """Remove a blob, or all below a prefix; nothing where there is none."""
        with suppress(FileNotFoundError):
            self.system.rm(self._path(key), recursive=True)

    @contextmanager
    def local(self, key: str) -> Iterator[Path]:
        """The blob as a local file that must not be changed; a copy where the store is elsewhere."""
        if self.is_local:
            yield Path(self._path(key))
            return
        with tempfile.NamedTemporaryFile(prefix="antibody-") as copy:
            for piece in self.chunks(key):
                copy.write(piece)
            copy.flush()
            yield Path(copy.name)

    def store_folder(self, folder: Path, kind: str = "models") -> str:
        """Store every file of a folder under a new prefix, which is returned once all of them are there."""
        prefix = self.new_key(kind)
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as source, self.writing(f"{prefix}/{path.relative_to(folder).as_posix()}") as file:
                    shutil.copyfileobj(source, file, COPY_BYTES)
        return prefix

    def fetch_folder(self, prefix: str, folder: Path) -> Path:
        """Copy everything below a prefix into a folder, which is made whole or not at all, and return it.

        Raises:
            FileNotFoundError: there is nothing below the prefix.
        """
        if folder.exists():
            return folder
        root = self._path(prefix)
        names = list(self.system.find(root))
        if not names:
            raise FileNotFoundError(prefix)
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name[:50]}.", dir=folder.parent))
        try:
            for name in names:
                target = scratch / name[len(root) :].lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                with self.system.open(name, "rb") as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, COPY_BYTES)
            with suppress(OSError):  # another process was faster
                os.rename(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return folder

    def _path(self, key: str) -> str:
        parts = key.split("/")
        assert all(part and not part.startswith("..") for part in parts), "a key is made by new_key"
        return f"{self.root.rstrip('/')}/{key}"


def _written_at(entry: Mapping[str, Any]) -> float:
    """Seconds since 1970, by whichever name the file system has for it; now where it has none."""
    at = entry.get("mtime") or entry.get("LastModified") or entry.get("last_modified") or entry.get("created")
    return at.timestamp() if isinstance(at, datetime) else float(at or time.time())
