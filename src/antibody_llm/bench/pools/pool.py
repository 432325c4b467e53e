"""A pool, and the order in which it is given jobs: each as soon as the one that it needs is done.

A pool knows neither what a job is nor what it needs. ``carried_out`` knows no process. What both of them hold is
bounded by the pool's capacity, so that a plan of ten thousand jobs costs a queue and no more.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

J = TypeVar("J", bound=Hashable)


@dataclass(frozen=True)
class Ended(Generic[J]):
    """A job that ended, successful or failed."""

    job: J
    outcome: Any = None
    """What the job's function returned; None if it failed."""
    error: BaseException | None = None
    """The error of this job, or of the one that it needs."""


class Pool(Protocol[J]):
    """Carries out jobs, each in a process that may be anywhere."""

    capacity: int
    """How many jobs are worth having here at once, those that wait included."""

    def submit(self, job: J) -> None:
        """Take a job; at most ``capacity`` are here at once."""

    def wait(self) -> list[Ended[J]]:
        """Wait until at least one job has ended; return those that have."""

    def close(self) -> None:
        """End every process at once, as a kill would; what they were doing can be done again."""


def carried_out(jobs: Iterable[J], pool: Pool[J], needs: Callable[[J], J | None]) -> Iterator[Ended[J]]:
    """Yield each job as it ends; the pool is closed at the end, whatever that is.

    A job that fails stops neither the others nor the iterator; the jobs that need it fail with it.

    Args:
        jobs: Each once. A job's need is among them, unless it is done already.
        pool: Who does them.
        needs: The job that must be done before another.
    """
    left = list(jobs)
    known, waiting = set(left), dict[J, list[J]]()
    ready: deque[J] = deque()
    for job in left:
        needed = needs(job)
        if needed is not None and needed in known:
            waiting.setdefault(needed, []).append(job)
        else:
            ready.append(job)
    running = 0
    try:
        while ready or running:
            while ready and running < pool.capacity:
                pool.submit(ready.popleft())
                running += 1
            for ended in pool.wait():
                running -= 1
                yield ended
                if ended.error is None:
                    ready.extend(waiting.pop(ended.job, ()))
                else:
                    yield from (Ended(job, error=ended.error) for job in _all_that_need(ended.job, waiting))
    finally:
        pool.close()


def _all_that_need(job: J, waiting: dict[J, list[J]]) -> list[J]:
    """Remove and return the jobs that need a job, directly or through another."""
    taken: list[J] = []
    for other in waiting.pop(job, ()):
        taken += [other, *_all_that_need(other, waiting)]
    return taken
