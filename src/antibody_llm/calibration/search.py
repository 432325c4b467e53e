"""The trials of a calibration, asked for as there is room and reported to the study as they end.

A trial is the jobs of one setting. Every finished job is stored and every choice is in the study on disk: killed
anywhere, the search goes on with the trials that were under way, and of those only what is not stored is done again.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..bench.job import Job
from ..bench.pools.pool import Ended, Pool
from ..bench.results import Results
from ..errors import AntibodyError, OutputError
from ..events import Progress, emit
from ..searching import Study, Trial
from .objective import WORST, Outcome, outcome
from .space import Range, Setting, draw, split

ENDLESS = 1_000_000
"""Trials of a search that only time ends."""


@dataclass(frozen=True)
class Tried:
    """A trial that has ended."""

    number: int
    setting: Setting
    outcome: Outcome | None
    """None if it failed."""
    seconds: float | None
    """Processor time of its jobs; None if it failed."""
    error: str | None = None


@dataclass
class _Running:
    trial: Trial
    setting: Setting
    cells: Sequence[Job]
    values: dict[Job, Mapping[str, Any]] = field(default_factory=dict)


def of_the_setting(error: BaseException) -> bool:
    """Whether another setting may do better: a loss that is not a number. A full disk or a killed process is no such
    error: the trial is asked for again in the next call."""
    return isinstance(error, AntibodyError) and not isinstance(error, OutputError)


class Search:
    """Trials until the study has its budget or the time is over.

    Args:
        study: Where choices are.
        space: What is searched.
        jobs: Makes the cells of a setting.
        score: What the search raises.
        results: Where finished jobs are.
        trials: The budget of the study, for progress.
        minutes: When to begin no more trials, earlier calls included; None is never.
    """

    def __init__(
        self,
        study: Study,
        space: Mapping[str, Range],
        jobs: Callable[[Setting], Sequence[Job]],
        score: Callable[[Outcome], float],
        results: Results,
        *,
        trials: int,
        minutes: float | None,
    ) -> None:
        self._study, self._space, self._jobs, self._score, self._results = study, space, jobs, score, results
        self._trials, self._minutes = trials, minutes
        before = max((float(told.notes.get("elapsed", 0.0)) for told in study.told()), default=0.0)
        self._begun = time.monotonic() - before
        self._running: dict[int, _Running] = {}
        self._queue: deque[Job] = deque()
        self._submitted: set[Job] = set()
        self._done = len(study.told())

    def run(self, pool: Pool[Job]) -> None:
        """Search; the pool is closed, whatever happens."""
        self._report("trials")
        try:
            while True:
                while len(self._submitted) + len(self._queue) < pool.capacity and self._begin():
                    pass
                while self._queue and len(self._submitted) < pool.capacity:
                    job = self._queue.popleft()
                    self._submitted.add(job)
                    pool.submit(job)
                if not self._submitted:
                    return
                for ended in pool.wait():
                    self._ended(ended)
        finally:
            pool.close()

    def tried(self) -> list[Tried]:
        """Every trial that has ended."""
        found = []
        for told in self._study.told():
            notes = told.notes
            measured = Outcome(**notes["outcome"]) if "outcome" in notes else None
            found.append(Tried(told.number, split(notes["values"]), measured, notes.get("seconds"), notes.get("error")))
        return found

    @property
    def elapsed(self) -> float:
        """Seconds of searching, earlier calls included."""
        return time.monotonic() - self._begun

    def _begin(self) -> bool:
        """Ask for a trial and queue what is not stored of it; whether there was one."""
        if self._minutes is not None and self.elapsed >= 60 * self._minutes:
            return False
        trial = self._study.ask()
        if trial is None:
            return False
        setting = draw(trial, self._space)
        running = self._running[trial.number] = _Running(trial, setting, self._jobs(setting))
        for job in running.cells:
            self._want(job)
        self._settle(trial.number)
        return True

    def _want(self, job: Job) -> None:
        """Queue a job, or what it needs first, unless it is stored or on its way."""
        stored = self._results.read(job)
        if stored is not None:
            self._take(job, stored)
        elif job.needs is not None and self._results.read(job.needs) is None:
            self._want(job.needs)
        elif job not in self._submitted and job not in self._queue:
            self._queue.append(job)

    def _take(self, job: Job, values: Mapping[str, Any]) -> None:
        for running in self._running.values():
            if job in running.cells:
                running.values[job] = values

    def _ended(self, ended: Ended[Job]) -> None:
        self._submitted.discard(ended.job)
        concerned = [n for n, each in self._running.items() if any(ended.job in (c, c.needs) for c in each.cells)]
        if ended.error is not None:
            if not of_the_setting(ended.error):
                raise ended.error
            for number in concerned:
                self._fail(number, str(ended.error))
            return
        self._take(ended.job, ended.outcome)
        for number in concerned:
            for job in self._running[number].cells:
                if job.needs == ended.job:
                    self._want(job)
            self._settle(number)

    def _settle(self, number: int) -> None:
        """Tell the study of a trial whose jobs have all ended."""
        running = self._running[number]
        if len(running.values) < len(set(running.cells)):
            return
        del self._running[number]
        found = outcome([running.values[job] for job in running.cells])
        seconds = sum(float(values.get("cpu_seconds", 0.0)) for values in running.values.values())
        notes = {"outcome": asdict(found), "seconds": seconds} | self._notes(running)
        self._study.tell(running.trial, self._score(found), notes)
        self._done += 1
        self._report(f"trial {number}: {running.setting.words}")

    def _fail(self, number: int, error: str) -> None:
        running = self._running.pop(number)
        wanted = {job for each in self._running.values() for cell in each.cells for job in (cell, cell.needs)}
        self._queue = deque(job for job in self._queue if job in wanted)
        self._study.tell(running.trial, WORST, {"error": error} | self._notes(running))
        self._done += 1
        self._report(f"trial {number} failed")

    def _notes(self, running: _Running) -> dict[str, Any]:
        values = {**running.setting.options, **{f"training.{k}": v for k, v in running.setting.training.items()}}
        return {"values": values, "elapsed": self.elapsed}

    def _report(self, what: str) -> None:
        if self._trials < ENDLESS:
            emit(Progress(what=what, done=min(self._done, self._trials), total=self._trials))
        else:
            total = round(60 * (self._minutes or 0))
            emit(Progress(what=f"{what} (seconds)", done=min(round(self.elapsed), total), total=total))
