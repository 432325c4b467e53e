"""The folder of a matrix: a file for each finished job, named by the digest of its configuration.

    results/KEY.json     what came of a job, whole or absent
    alignments/KEY/      the run of an alignment, which every cell that needs it reads
    working/KEY/         the runs of a cell that is not finished
    locks/KEY            held while a job is done, freed by the system however its process ends

Several commands, and several machines that share the disk, may work on one folder.
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..events import warn
from ..files import disk_errors, reason, try_lock, write_text
from ..text import quoted
from .job import Job

RESULTS, ALIGNMENTS, WORKING, LOCKS = "results", "alignments", "working", "locks"
SET_ASIDE = "unreadable"
PATIENCE = 0.2
"""Seconds between two looks at a lock that another process holds."""


@dataclass(frozen=True)
class Results:
    """The finished jobs of a folder."""

    folder: Path

    def read(self, job: Job) -> dict[str, Any] | None:
        """What came of a job; None where it is not finished.

        A file that is no result of this job is renamed and named in a warning.
        """
        file = self.folder / RESULTS / f"{job.key}.json"
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            if stored["key"] != job.key or not isinstance(stored["values"], dict) or stored["kind"] != job.kind:
                raise ValueError("it is not the result of the job that its name means")
            values: dict[str, Any] = stored["values"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            self._set_aside(file, error)
            return None
        if job.kind == "alignment" and not (self.aligned(job) / "result.json").is_file():
            return None  # its model was removed, and is made again
        return values

    def write(self, job: Job, values: Mapping[str, Any]) -> None:
        """Store what came of a job, and remove what it worked with."""
        stored = {"key": job.key, "kind": job.kind, "label": job.label, "config": job.config, "values": values}
        with disk_errors(self.folder):
            (self.folder / RESULTS).mkdir(parents=True, exist_ok=True)
        write_text(self.folder / RESULTS / f"{job.key}.json", json.dumps(stored, indent=1) + "\n")
        shutil.rmtree(self.working(job), ignore_errors=True)

    def aligned(self, job: Job) -> Path:
        """The run's folder of an alignment."""
        return self.folder / ALIGNMENTS / job.key

    def working(self, job: Job) -> Path:
        """Where a cell has its runs until it is finished."""
        return self.folder / WORKING / job.key

    @contextmanager
    def locked(self, job: Job) -> Iterator[None]:
        """Wait until no other process does this job; inside, none begins. The file has a line for each that held it."""
        file = self.folder / LOCKS / job.key
        with disk_errors(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            try:
                while not try_lock(descriptor):
                    time.sleep(PATIENCE)
            except OSError as error:
                warn(f"{file.parent}: cannot be locked here ({error.strerror}): give the folder to one command alone.")
            with disk_errors(file):
                os.write(descriptor, f"{os.getpid()} on {socket.gethostname()}\n".encode())
            yield
        finally:
            os.close(descriptor)

    def _set_aside(self, file: Path, error: Exception) -> None:
        number = 1
        while (aside := file.with_name(f"{file.name}.{SET_ASIDE}-{number}")).exists():
            number += 1
        why = reason(error) if isinstance(error, OSError) else quoted(str(error), limit=80)
        with disk_errors(file):
            file.rename(aside)
        warn(f"{file}: this result cannot be read ({why}). It is now {aside.name}, and its job is done again.")
