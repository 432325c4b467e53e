"""The worker: takes jobs from the queue, one at a time, and runs their stages in processes of their own.

    validating_files    the form was checked at upload; here the rows are screened
    running             train, with checkpoints among the blobs; then the gate, on every checkpoint that can be reached

The worker may be killed at any moment. Whatever is needed to go on is among the blobs before the database says so:
the newest checkpoint of the trainer (``private.run``), and the trained weights (``private.trained``). Each claim works
in a folder of its own, so that a worker which was only slow cannot touch what its successor does.
"""

import json
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from .blobs import Blobs
from .claims import LeaseLost
from .database.engine import Database
from .loading import settings_of
from .parent import die_with_parent
from .queue import Queue
from .settings import ServerSettings
from .traces import TracedExecutor, make_traces
from .working.executor import Executor, LocalExecutor, make_executor
from .working.held import GivenBack, Held, Paused
from .working.job import ClaimedWork, JobFailed
from .working.judging import judge
from .working.screening import screen
from .working.training import train

log = logging.getLogger("antibody.server")

IDLE_SECONDS = 0.5
"""Pause between two looks at an empty queue."""


class Worker:
    """Works until ``stop``.

    Args:
        queue: Where jobs come from.
        blobs: Files and weights, shared with the server.
        settings: The operator's, the same as the server's.
        executor: Where stages run; by default on this machine.
        scratch: Folder for the work of this process; it is emptied at the end.
        idle_seconds: Between two looks at an empty queue.
    """

    def __init__(
        self,
        queue: Queue,
        blobs: Blobs,
        settings: ServerSettings,
        *,
        executor: Executor | None = None,
        scratch: Path | None = None,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self.queue, self.blobs, self.settings = queue, blobs, settings
        self.executor = executor or LocalExecutor()
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.scratch = (scratch or settings.home / "work") / self.name
        self.idle_seconds = idle_seconds
        self.base_measures: dict[str, dict[str, Any]] = {}
        """What the gate's prompts found of each offered model."""
        self._ending = threading.Event()

    def run(self) -> None:
        """Take jobs until ``stop``; a job that is running then is given back after its next checkpoint."""
        sweep(self.scratch.parent)
        self.scratch.mkdir(parents=True, exist_ok=True)
        (self.scratch / "pid").write_text(str(os.getpid()), encoding="utf-8")
        failures = 0
        try:
            while not self._ending.is_set():
                try:
                    idle = not self.once()
                    failures = 0
                except Exception as problem:  # a database or a store that is away: look again, ever more rarely
                    log.exception("the worker %s goes on after: %s", self.name, type(problem).__name__)
                    idle, failures = True, min(failures + 1, 6)
                if idle:
                    self._ending.wait(self.idle_seconds * 2**failures)
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def stop(self) -> None:
        """Have ``run`` end in good order."""
        self._ending.set()

    def once(self) -> bool:
        """Work on one job as far as it goes; False where none waits."""
        asked = time.monotonic()
        claimed = self.queue.claim(self.name)
        if claimed is None:
            return False
        started = time.monotonic()
        folder = self.scratch / f"{claimed.job.id}-{claimed.token}"
        try:
            with Held(self.queue, claimed, self._ending, since=asked) as held:
                end = self._work(held, folder)
        except LeaseLost:
            end = "lost"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        entry = {"event": "job", "job": claimed.job.id, "status": claimed.job.status, "end": end}
        log.info(json.dumps(entry | {"worker": self.name, "seconds": round(time.monotonic() - started, 1)}))
        return True

    def _work(self, held: Held, folder: Path) -> str:
        """Do what the job's state asks for, and say how it ended."""
        claimed, work = held.claimed, None
        try:
            work = ClaimedWork(held, self.blobs, self.settings, self.executor, folder)
            if claimed.job.status == "validating_files":
                screen(work)
                return "screened"
            if "trained" not in work.private:
                train(work)
            held.check()
            judge(work, self.base_measures)
        except (Paused, GivenBack) as stopped:
            self.queue.release(claimed)
            return "paused" if isinstance(stopped, Paused) else "given back"
        except JobFailed as failure:
            self.queue.finish(claimed, "failed", error=failure.error, **failure.with_it)
            if work is not None:
                work.tidy()
            return str(failure.error["code"])
        work.tidy()
        return "succeeded"


def sweep(scratch: Path) -> None:
    """Remove what workers of this machine left that were killed."""
    host = socket.gethostname()
    for folder in scratch.glob(f"{host}-*") if scratch.is_dir() else ():
        with suppress(OSError, ValueError):
            pid = int((folder / "pid").read_text(encoding="utf-8"))
            if not _is_alive(pid):
                shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def make_worker(settings: ServerSettings) -> Worker:
    """A worker with connections of its own."""
    database = Database(settings.database_url)
    blobs = Blobs(settings.blob_url)
    queue = Queue(database, blobs, lease=settings.worker.lease, max_attempts=settings.worker.attempts)
    executor = make_executor(settings.worker)
    if traces := make_traces(settings.telemetry):
        executor = TracedExecutor(executor, traces)
    return Worker(queue, blobs, settings, executor=executor)


def work(settings: ServerSettings) -> None:
    """Work until SIGINT or SIGTERM; a job that is running then is given back after its next checkpoint."""
    worker = make_worker(settings)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: worker.stop())
    worker.run()


def main() -> None:
    """A worker of the server that started this process, whose settings are on standard input."""
    die_with_parent(signal.SIGTERM)
    settings = settings_of(json.loads(sys.stdin.read()))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    work(settings)


if __name__ == "__main__":
    main()
