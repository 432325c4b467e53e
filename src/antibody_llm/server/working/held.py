"""A claim on a job that is kept while its work goes on, and what becomes of it: paused, lost, or given back.

A thread renews the claim. What it learns it does to the stage that runs at the time: it stops one whose job is to pause
or whose worker is to end, and kills one whose job is no longer this worker's. Another thread watches the clock: where
no renewal comes through, because the database is away or slow, it kills the stage before the claim ends and somebody
else begins the same job.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..claims import Claimed, LeaseLost
from ..queue import Queue
from .executor import Process

log = logging.getLogger("antibody.server")

LOOK_SECONDS = 1.0
"""Longest pause between two renewals of a claim, at which a job learns what its customer wants."""


class Paused(Exception):
    """The customer wants the job to rest."""


class GivenBack(Exception):
    """The worker is to end; another one will go on with the job."""


class Held:
    """A claimed job. ``with`` keeps the claim for a block.

    Args:
        queue: The queue that the job comes from.
        claimed: The job and the token.
        ending: Set when the worker is to end.
        since: When it asked for the job, by ``time.monotonic``; None: now.
    """

    def __init__(self, queue: Queue, claimed: Claimed, ending: threading.Event, *, since: float | None = None) -> None:
        self.queue, self.claimed, self.ending = queue, claimed, ending
        self.pause = False
        self.lost: LeaseLost | None = None
        self._process: Process | None = None
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._every = min(queue.lease / 4, LOOK_SECONDS)
        self._until = (time.monotonic() if since is None else since) + queue.lease
        self._threads = [
            threading.Thread(target=self._keep, name=f"lease of {claimed.job.id}", daemon=True),
            threading.Thread(target=self._watch, name=f"end of the lease of {claimed.job.id}", daemon=True),
        ]

    def __enter__(self) -> "Held":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(self._every)  # one that waits for the database must not keep the worker

    def check(self) -> None:
        """Raise what has become of the claim, if anything.

        Raises:
            LeaseLost: it is another's, or the job was cancelled.
            Paused: the job is to rest.
            GivenBack: the worker is to end.
        """
        if self.lost is not None:
            raise self.lost
        if self.pause:
            raise Paused
        if self.ending.is_set():
            raise GivenBack

    @contextmanager
    def running(self, process: Process) -> Iterator[Process]:
        """Inside, the process is stopped or killed as the job's state asks."""
        with self._lock:
            self._process = process
        self._act()
        try:
            yield process
        except BaseException:
            process.kill()
            raise
        finally:
            with self._lock:
                self._process = None

    def _keep(self) -> None:
        while not self._done.wait(self._every):
            if self.lost is None:
                self._renew()
            self._act()

    def _watch(self) -> None:
        while not self._done.wait(self._every / 2):
            if self.lost is None and time.monotonic() > self._until - self._every:
                self.lost = LeaseLost(f"{self.claimed.job.id}: no renewal came through in time.")
                log.warning("%s", self.lost)
                self._act()

    def _renew(self) -> None:
        asked = time.monotonic()
        try:
            self.pause = self.queue.renew(self.claimed).pause
            self._until = asked + self.queue.lease
        except LeaseLost as error:
            self.lost = error
        except Exception as error:  # a database that is away for a moment: the claim lasts a few renewals
            log.warning("%s: the claim could not be renewed (%s)", self.claimed.job.id, type(error).__name__)

    def _act(self) -> None:
        with self._lock:
            if self._process is None:
                return
            if self.lost is not None:
                self._process.kill()
            elif self.pause or self.ending.is_set():
                self._process.stop()
