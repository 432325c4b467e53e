"""Runs many cells in processes of one thread each, so that a row does not depend on how many there are."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

from .cell import Alignment, Cell, Figures, Job, carry_out

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
    left = list(jobs)
    with ProcessPoolExecutor(
        processes or num_cores(), mp_context=get_context("spawn"), initializer=_start_process
    ) as pool:
        running: dict[Future[Figures], Job] = {}

        def start(needed: Job | None) -> None:
            for job in [job for job in left if _needs(job) == needed]:
                left.remove(job)
                with _interrupts_held_back():
                    running[pool.submit(carry_out, folder, job)] = job

        start(None)
        try:
            while running:
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    job = running.pop(future)
                    error = future.exception()
                    if error is None:
                        start(job)
                        yield Done(job, future.result())
                    else:
                        for failed in (job, *_all_that_need(job, left)):
                            yield Done(failed, {}, error)
        except BaseException:
            for process in list(pool._processes.values()):  # as a kill would: their runs can be resumed
                process.terminate()
            pool.shutdown(cancel_futures=True)
            raise


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


def _needs(job: Job) -> Job | None:
    return None if isinstance(job, Alignment) else job.needs


def _all_that_need(job: Job, left: list[Job]) -> list[Job]:
    """Remove and return the jobs of ``left`` that need a job, directly or through another."""
    taken: list[Job] = []
    for other in [other for other in left if _needs(other) == job]:
        left.remove(other)
        taken += [other, *_all_that_need(other, left)]
    return taken


def _start_process() -> None:
    """Make a worker single-threaded and silent, and end it with its parent.

    A worker that outlived its killed parent would write into the folders of the resumed run.
    """
    import logging
    import warnings

    import torch
    from transformers.utils import logging as transformers_logging

    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "this is called in a worker"
    parent.join()
    os._exit(1)
