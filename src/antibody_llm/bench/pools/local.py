"""Processes of this machine, forked from one that has imported the libraries."""

import os
import pickle
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, Generic

from .pool import Ended, J

RETRIES = 2
"""How often a job is done again whose process was killed: by a system out of memory, say."""
_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload([f"{__package__}.warm"])


class ProcessKilled(Exception):
    """The process of a job was killed, again and again."""


@dataclass
class _Worker(Generic[J]):
    process: BaseProcess
    line: Connection
    job: J | None = None


class LocalPool(Generic[J]):
    """Processes that each do one job at a time.

    Args:
        work: Called for each job; a function that a module has by name, or a ``partial`` of one.
        processes: How many.
    """

    def __init__(self, work: Callable[[J], Any], *, processes: int) -> None:
        self.capacity = processes
        self._work = work
        self._queue: deque[J] = deque()
        self._deaths: Counter[J] = Counter()
        self._workers: list[_Worker[J]] = []

    def submit(self, job: J) -> None:
        """Give it to a process that is free, or to a new one."""
        self._queue.append(job)
        self._assign()

    def wait(self) -> list[Ended[J]]:
        """Wait for replies and deaths."""
        ended: list[Ended[J]] = []
        while not ended:
            busy = {worker.line: worker for worker in self._workers if worker.job is not None}
            for line in wait(list(busy)):  # a line that is closed by a death is ready too
                done = self._heard(busy[line])  # type: ignore[index]
                if done is not None:
                    ended.append(done)
            self._assign()
        return ended

    def close(self) -> None:
        """Kill every process: whatever they write is whole or absent."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.line.close()
        self._workers.clear()

    def _assign(self) -> None:
        while self._queue:
            free = next((worker for worker in self._workers if worker.job is None), None)
            if free is None and len(self._workers) >= self.capacity:
                return
            worker = free or self._new()
            job = self._queue.popleft()
            worker.job = job
            with suppress(OSError):  # it died while it was idle: its line says so
                worker.line.send(job)

    def _new(self) -> _Worker[J]:
        ours, theirs = _FORKS.Pipe()
        # Not a daemon: a job may start processes of its own.
        process = _FORKS.Process(target=_serve, args=(theirs, self._work))
        with _interrupts_held_back():
            process.start()
        theirs.close()
        worker = _Worker[J](process, ours)
        self._workers.append(worker)
        return worker

    def _heard(self, worker: _Worker[J]) -> Ended[J] | None:
        """What the worker's line says; None if its job is to be done again."""
        job = worker.job
        assert job is not None
        try:
            outcome, error = worker.line.recv()
        except (EOFError, OSError):
            return self._died(worker, job)
        worker.job = None
        return Ended(job, outcome, error)

    def _died(self, worker: _Worker[J], job: J) -> Ended[J] | None:
        worker.process.join()
        worker.line.close()
        self._workers.remove(worker)
        self._deaths[job] += 1
        if self._deaths[job] <= RETRIES:
            self._queue.appendleft(job)
            return None
        code = worker.process.exitcode
        how = f"killed by signal {-code}" if code is not None and code < 0 else f"ended with {code}"
        return Ended(job, error=ProcessKilled(f"its process was {how}, {RETRIES + 1} times. Is there enough memory?"))


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Start processes inside that never see Ctrl-C, which a terminal sends to all of them at once: this process ends
    them. The mask is inherited; an interrupt that comes meanwhile is delivered here afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def num_cores() -> int:
    """The number of cores that this process may use."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _serve(line: Connection, work: Callable[[Any], Any]) -> None:
    """The life of a process: a job, a reply, until the line is closed."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            job = line.recv()
        except EOFError:
            return
        line.send(attempted(work, job))


def attempted(work: Callable[[Any], Any], job: Any) -> tuple[Any, Exception | None]:
    """What the work returns, or the error that it raises, in a form that can be sent."""
    try:
        return work(job), None
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return None, RuntimeError(f"{type(error).__name__}: {error}")
        return None, error


def _end_with_parent() -> None:
    """End this process with its parent: it would write into the folders of a resumed run."""
    parent = parent_process()
    assert parent is not None, "this is called in a worker"
    parent.join()
    os._exit(1)
