"""Evidence that was read before: an upload screened again, or after a killed run, costs no second pass.

One SQLite file in ``$ANTIBODY_CACHE``, or ``~/.cache/antibody``; it may be deleted at any time, as may what
stored_rule.py keeps beside it. It holds hashes and numbers, never text. A key is the SHA-256 of everything that the
evidence of a row depends on: both models' weights, the measure and its probe, the refusals, the row's tokens.

If the cache is unusable, we warn once and continue without it. A damaged cache is renamed and replaced.
"""

import json
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.records import TokenizedRow
from ..events import warn

FILE = "evidence.sqlite"
NUM_SAMPLED = 4096
"""Elements of each weight that enter its identity, besides its shape and its sum. Training moves nearly all."""
_KEYS_PER_QUERY = 500  # SQLite's own limit is 999 in old releases

Found = tuple[float, int, float | None]
"""Evidence, the number of the nearest refusal (-1 where none was sought), and the distance from the anchors (None where
it was not read)."""


def cache_folder() -> Path:
    """The cache's folder."""
    return Path(os.environ.get("ANTIBODY_CACHE") or Path.home() / ".cache" / "antibody").expanduser()


class EvidenceCache:
    """Evidence by row, for one way of reading it.

    Args:
        folder: The cache's folder; made if need be.
        reading: Identity of everything but the row: models, measure, refusals. See ``digest_of``.
    """

    def __init__(self, folder: Path, reading: bytes) -> None:
        self.file = folder / FILE
        self._reading = reading
        self._database: sqlite3.Connection | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._database = self._opened()
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def read(self, rows: Sequence[bytes]) -> dict[bytes, Found]:
        """Evidence of those rows that are known, by ``row_digest``."""
        found: dict[bytes, Found] = {}
        if self._database is None:
            return found
        keys = {self._key(row): row for row in rows}
        asked = list(keys)
        try:
            for start in range(0, len(asked), _KEYS_PER_QUERY):
                some = asked[start : start + _KEYS_PER_QUERY]
                marks = ",".join("?" * len(some))
                query = f"SELECT key, evidence, nearest, distance FROM readings WHERE key IN ({marks})"
                for key, evidence, nearest, distance in self._database.execute(query, some):
                    found[keys[key]] = (float(evidence), int(nearest), None if distance is None else float(distance))
        except (sqlite3.Error, ValueError, TypeError) as error:
            self._give_up(error)
            return {}
        return found

    def write(self, found: Mapping[bytes, Found]) -> None:
        """Store what was read, all of it or nothing."""
        if self._database is None:
            return
        rows = [(self._key(row), *values) for row, values in found.items()]
        try:
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO readings VALUES (?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the file."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _key(self, row: bytes) -> bytes:
        return sha256(self._reading + row).digest()

    def _opened(self) -> sqlite3.Connection:
        try:
            return _database(self.file)
        except sqlite3.OperationalError:  # locked, read-only, no room: the file itself may be intact
            raise
        except sqlite3.DatabaseError:
            aside = self.file.with_suffix(".damaged")
            self.file.replace(aside)
            warn(f"{self.file}: the cache is damaged; it is now {aside.name}, and a new one is made.")
            return _database(self.file)

    def _give_up(self, error: Exception) -> None:
        warn(
            f"{self.file}: the cache cannot be used ({error}), and this run continues without it. Delete the file, or "
            "set ANTIBODY_CACHE to another folder."
        )
        self.close()


def _database(file: Path) -> sqlite3.Connection:
    database = sqlite3.connect(file, timeout=30)
    try:
        with database:
            database.execute("DROP TABLE IF EXISTS evidence")  # without distances, of releases before there were any
            database.execute(
                "CREATE TABLE IF NOT EXISTS readings "
                "(key BLOB PRIMARY KEY, evidence REAL, nearest INTEGER, distance REAL)"
            )
            database.execute("SELECT key, evidence, nearest, distance FROM readings LIMIT 1").fetchall()
    except sqlite3.Error:
        database.close()
        raise
    return database


def row_digest(row: TokenizedRow) -> bytes:
    """Identity of a row as a model reads it, 32 bytes: a shorter one could be matched on purpose."""
    return digest_of([str(row.template), repr(row.spans), repr(row.input_ids)])


def digest_of(parts: Iterable[str | bytes]) -> bytes:
    """SHA-256 of all parts, each preceded by its length."""
    digest = sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.digest()


def weights_identity(model: nn.Module) -> bytes:
    """Identity of a model by its configuration and a sample of each weight, wherever its files are."""
    config: Any = model.config
    parts: list[str | bytes] = [_plain(config.to_dict())]
    for name, adapter in sorted(getattr(model, "peft_config", {}).items()):
        parts += [name, _plain(adapter.to_dict())]
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().flatten()
        step = max(1, flat.numel() // NUM_SAMPLED)
        sample = flat[::step][:NUM_SAMPLED].to("cpu", torch.float32)
        total = float(flat.sum(dtype=torch.float64)) if flat.is_floating_point() else 0.0
        parts += [f"{name} {weight.dtype} {tuple(weight.shape)} {total:.8g}", sample.numpy().tobytes()]
    return digest_of(parts)


def _plain(config: Mapping[str, Any]) -> str:
    """A configuration as text, the same in every process, without the place of its files."""
    kept = {key: value for key, value in config.items() if key not in ("_name_or_path", "base_model_name_or_path")}
    return json.dumps(
        kept, sort_keys=True, default=lambda value: sorted(value) if isinstance(value, set) else str(value)
    )
