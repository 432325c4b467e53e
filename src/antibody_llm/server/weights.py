"""Where the weights of a fine-tuned model are on this machine: its adapter, and what lies under it."""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from .blobs import Blobs
from .database.tables import Model
from .queue import Queue

MOST_FOLDERS = 64
"""Fetched models that stay on a machine."""


@dataclass(frozen=True)
class Weights:
    """What a model is loaded from."""

    model: str
    """A folder, a packaged name or a Hub id."""
    adapter: str | None = None
    """The folder of an adapter on it."""


def local_weights(name: str, offered: str, queue: Queue, blobs: Blobs, cache: Path) -> Weights | None:
    """The weights of a fine-tuned model as local folders, fetched where they are not here yet.

    An adapter goes on with that of the model it continues, so that it lies on the nearest whole model of its chain.

    Args:
        name: The model's name.
        offered: Path of the offered model at the beginning of its chain.
        queue: Knows the models.
        blobs: Holds the weights.
        cache: Folder for what is fetched.

    Returns:
        None where the weights of a model of the chain are gone.
    """
    adapter: str | None = None
    row = queue.model(name)
    while row is not None and not row.purged:
        folder = _fetched(row, blobs, cache)
        if (folder / "config.json").is_file():
            return Weights(str(folder), adapter)
        adapter = adapter or str(folder)
        if row.parent is None:
            return Weights(offered, adapter)
        row = queue.model(row.parent)
    return None


def _fetched(row: Model, blobs: Blobs, cache: Path) -> Path:
    folder = cache / sha256(row.adapter.encode()).hexdigest()[:32]
    if not folder.is_dir():
        _make_room(cache)
    blobs.fetch_folder(row.adapter, folder)
    with suppress(OSError):
        os.utime(folder)  # asked for now
    return folder


def _make_room(cache: Path) -> None:
    """Remove the folders that were not asked for the longest."""
    folders = [entry for entry in cache.iterdir() if not entry.name.startswith(".")] if cache.is_dir() else []
    for old in sorted(folders, key=lambda folder: folder.stat().st_mtime)[: max(0, len(folders) - MOST_FOLDERS + 1)]:
        shutil.rmtree(old, ignore_errors=True)
