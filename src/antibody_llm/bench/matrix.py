"""Runs many cells in processes of one thread each, so that a row does not depend on how many there are."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .cell import Alignment, Cell, Figures, Job, carry_out
from .pools.local import LocalPool, num_cores
from .pools.pool import carried_out as in_order
from .settle import settle

CarryOut = Callable[[Path, Job], Figures]


@dataclass(frozen=True)
class Done:
    """A finished job, successful or failed.

    Attributes:
        job: The job.
        figures: The figures that ``carry_out`` returned; empty if it failed.
        error: The error of this job, or of the one that it needs.
    """

    job: Job
    figures: Figures
    error: BaseException | None = None


def all_jobs(cells: Iterable[Cell]) -> list[Job]:
    """The cells and everything that they need, alignments first, nothing twice."""
    jobs: dict[Job, None] = {}
    for cell in cells:
        chain: list[Job] = [cell]
        while isinstance(chain[-1], Cell):
            chain.append(chain[-1].needs)
        jobs |= dict.fromkeys(reversed(chain))
    return sorted(jobs, key=lambda job: isinstance(job, Cell))  # stable: otherwise as planned


def carried_out(
    folder: Path, jobs: Iterable[Job], *, processes: int | None = None, carry_out: CarryOut = carry_out
) -> Iterator[Done]:
    """Yield each job as it ends; a job begins as soon as the one that it needs is complete.

    A job that fails stops neither the others nor the iterator; the jobs that need it fail with it.

    Args:
        folder: The folder of all runs.
        jobs: The jobs that ``all_jobs`` returned.
        processes: The number of processes; by default one per core.
        carry_out: The function that a process calls for each job.
    """
    pool: LocalPool[Job] = LocalPool(partial(_in_one_thread, carry_out, folder), processes=processes or num_cores())
    for ended in in_order(jobs, pool, _needs):
        yield Done(ended.job, ended.outcome or {}, ended.error)


def _in_one_thread(carry_out: CarryOut, folder: Path, job: Job) -> Figures:
    settle(1)
    return carry_out(folder, job)


def _needs(job: Job) -> Job | None:
    return None if isinstance(job, Alignment) else job.needs
