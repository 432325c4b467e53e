"""A matrix carried out: what is left of its plan, by whichever pool, and its results as one table."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from ..events import Listener, Progress, emit, listening
from .job import Job
from .plan import Plan
from .pools.local import LocalPool
from .pools.pool import Ended, Pool, carried_out
from .results import Results
from .work import carry_out

Work = Callable[[Path, Job], dict[str, Any]]
MakePool = Callable[[Callable[[Job], Any]], Pool[Job]]


class Jobs(Protocol):
    """A plan, of a matrix or of another grid."""

    @property
    def jobs(self) -> list[Job]:
        """Each job after the one that it needs, nothing twice."""


@dataclass
class Outcome:
    """What is known of a plan's jobs."""

    values: dict[Job, dict[str, Any]] = field(default_factory=dict)
    errors: dict[Job, str] = field(default_factory=dict)

    def took(self, ended: Ended[Job]) -> None:
        """Note how a job ended."""
        if ended.error is None:
            self.values[ended.job] = ended.outcome
        else:
            self.errors[ended.job] = f"{type(ended.error).__name__}: {ended.error}"


@dataclass(frozen=True)
class Estimate:
    """What is left of a plan, and how long it may take."""

    cells: int
    alignments: int
    cells_left: int
    alignments_left: int
    cpu_seconds: float | None
    """The processor time of all that is left, by the stored times of its like; None if nothing is stored."""


def known(jobs: Iterable[Job], folder: Path) -> Outcome:
    """What the folder has of some jobs already."""
    results, found = Results(folder), Outcome()
    for job in jobs:
        values = results.read(job)
        if values is not None:
            found.values[job] = values
    return found


def left(jobs: Sequence[Job], found: Outcome) -> list[Job]:
    """The jobs to do; an alignment without a cell to do is not among them."""
    cells = {job for job in jobs if job.kind == "cell" and job not in found.values}
    needed = {job.needs for job in cells} | cells
    return [job for job in jobs if job in needed and job not in found.values]


def estimate(plan: Plan, folder: Path) -> Estimate:
    """How much of a plan is left; nothing is run."""
    jobs = plan.jobs
    found = known(jobs, folder)
    todo = left(jobs, found)
    times: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for job, values in found.values.items():
        for like in _likes(job):
            times[like].append(values["cpu_seconds"])
    guesses = [next((fmean(times[like]) for like in _likes(job) if like in times), None) for job in todo]
    timed = [guess for guess in guesses if guess is not None]
    kinds = [job.kind for job in jobs]
    return Estimate(
        cells=kinds.count("cell"),
        alignments=kinds.count("alignment"),
        cells_left=sum(job.kind == "cell" for job in todo),
        alignments_left=sum(job.kind == "alignment" for job in todo),
        # What has no like at all is taken for the mean of the others.
        cpu_seconds=sum(timed) / len(timed) * len(todo) if timed else None if todo else 0.0,
    )


def _likes(job: Job) -> list[tuple[str, ...]]:
    """What a job's time may be guessed from, the most alike first."""
    part = job.config["defence" if job.kind == "alignment" else "finetuning"]
    return [(job.kind, part["name"], str(part["training"])), (job.kind, part["name"]), (job.kind,)]


def run_plan(
    plan: Jobs,
    folder: Path,
    *,
    make_pool: MakePool,
    work: Work = carry_out,
    listen: Listener | None = None,
) -> Outcome:
    """Do all that is left of a plan.

    A job that fails is an error of its cells, and the others go on.

    Args:
        plan: The cells.
        folder: Where results are; several commands may share it.
        make_pool: Makes the pool of the function that does a job.
        work: Does a job in the folder.
        listen: Hears of progress.
    """
    with listening(listen):
        return run_jobs(plan.jobs, folder, make_pool=make_pool, work=work)


def run_jobs(jobs: Sequence[Job], folder: Path, *, make_pool: MakePool, work: Work = carry_out) -> Outcome:
    """Do what is left of some jobs; whoever listens hears of progress.

    Args:
        jobs: Each once, with what it needs among them.
        folder: Where results are.
        make_pool: Makes the pool of the function that does a job.
        work: Does a job in the folder.
    """
    found = known(jobs, folder)
    todo = left(jobs, found)
    done, total = len(jobs) - len(todo), len(jobs)
    emit(Progress(what="cells and alignments", done=done, total=total))
    if not todo:
        return found
    pool = make_pool(partial(work, folder))
    for ended in carried_out(todo, pool, lambda job: job.needs):
        found.took(ended)
        done += 1
        emit(Progress(what=ended.job.label, done=done, total=total))
    return found


def local(processes: int) -> MakePool:
    """What makes a pool of processes on this machine."""
    return lambda work: LocalPool(work, processes=processes)


def failures(found: Outcome, jobs: Iterable[Job]) -> list[str]:
    """A line for each error, with the jobs that it stopped."""
    lines: dict[str, list[str]] = {}
    for job in jobs:
        if job in found.errors:
            lines.setdefault(found.errors[job], []).append(job.label)
    return [
        f"{labels[0]}{f' and {len(labels) - 1} more' if len(labels) > 1 else ''}: {e}" for e, labels in lines.items()
    ]
