"""The search carried out: what trials are measured against, the trials of every defence in turn, and the report.

    1  clean uploads on the half to choose by, and the owner of the weights until it wins
    2  trials: one of each defence, then the next of each, as many at once as the pool has room for
    3  the attack found at each tolerance, plain mixing, clean uploads and the owner, on the half to report on

Everything is a job with a stored result, and every choice is in a study on disk: killed anywhere, the search goes on
where it was, and a trial whose result is stored is read.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import AntibodyError, OutputError
from ...events import Listener, Progress, emit, listening
from ...searching import Study, Told, Trial, open_study
from ..job import Job
from ..matrix_file import Matrix
from ..plan import with_needs
from ..pools.pool import Ended
from ..results import Results
from ..run import MakePool, Outcome, Work, failures, run_jobs
from ..work import carry_out
from .attacker import CHOOSING, CONTROLS, REPORTING, Attacker, attackers, studies
from .measures import REFUSED, TOLERANCES, WINS, Attempt, best, score, upload_harm
from .space import Chosen, Known, as_they_come, draw

IN_FLIGHT = 4
"""Trials of one defence at once: more would be drawn without knowing what came of the others."""
DRAWN_FIRST = 6
"""Trials that are drawn at random, after the attacks as they come and before the search is guided."""


@dataclass(frozen=True)
class Against:
    """All that is known of the search against one defence."""

    attacker: Attacker
    clean: Mapping[str, Any]
    """The measures of a clean upload, on the half to choose by."""
    attempts: tuple[Attempt, ...]
    found: tuple[tuple[float, Attempt | None], ...]
    """The worst attack at each tolerance; None where no trial kept the task."""


@dataclass
class Searched:
    """All that is known of a search."""

    matrix: Matrix
    against: list[Against] = field(default_factory=list)
    values: dict[Job, dict[str, Any]] = field(default_factory=dict)
    """What is stored of jobs on the half to report on."""
    controls: dict[str, tuple[Attacker, tuple[float, int]]] = field(default_factory=dict)
    """The owner's best setting, by the alignment that it owns."""
    failed: list[str] = field(default_factory=list)
    """A line for each error but those of trials."""


def run_search(
    matrix: Matrix,
    folder: Path,
    budget: int,
    *,
    make_pool: MakePool,
    work: Work = carry_out,
    listen: Listener | None = None,
) -> Searched:
    """Search for the worst attack on each defence of a matrix.

    Args:
        matrix: Its defences, attacks and seeds; of budgets and tasks the first.
        folder: Where results and studies are; several matrices may share it.
        budget: Trials against each defence, those made before included.
        make_pool: Makes the pool of the function that does a job.
        work: Does a job in the folder.
        listen: Hears of progress.

    Raises:
        ConfigError: Optuna is missing, or the model has no two halves of rows.
        OutputError: another command is searching in the folder.
    """
    with listening(listen):
        runs = partial(run_jobs, folder=folder, make_pool=make_pool, work=work)
        searched, all_of_them = Searched(matrix), attackers(matrix)
        with ExitStack() as opened:
            by_key = {each.key: each for each in all_of_them}  # two names may be one defence
            open_ones = {key: opened.enter_context(_study(each, folder, budget)) for key, each in by_key.items()}
            clean = {each: each.clean(each.seed, CHOOSING) for each in all_of_them}
            found = runs(with_needs(clean.values()))
            searched.failed += failures(found, found.errors)
            able = [each for each in all_of_them if clean[each] in found.values]
            _control(searched, able, runs)
            trials = _Trials(able, open_ones, Results(folder), {each: found.values[clean[each]] for each in able})
            trials.run(make_pool(partial(work, folder)), len(able) * budget)
            searched.against = [trials.against(each) for each in able]
        _report(searched, runs)
        return searched


def _study(attacker: Attacker, folder: Path, budget: int) -> Any:
    first = as_they_come(attacker.space)
    return open_study(
        studies(folder) / attacker.key,
        seed=attacker.seed,
        budget=budget,
        startup=len(first) + DRAWN_FIRST,
        first=first,
    )


class _Trials:
    """The trials of all defences, asked for in turn and scored as they end."""

    def __init__(
        self,
        able: Sequence[Attacker],
        opened: Mapping[str, Study],
        results: Results,
        clean: Mapping[Attacker, Mapping[str, Any]],
    ) -> None:
        self._studies = {each: opened[each.key] for each in able}
        self._results, self._clean = results, clean
        self._running: dict[Job, list[tuple[Attacker, Trial]]] = {}

    def run(self, pool: Any, total: int) -> None:
        """Until every study has its budget; the pool is closed, whatever happens."""
        done = sum(len(study.told()) for study in self._studies.values())
        emit(Progress(what="trials", done=min(done, total), total=total))
        turn = deque(self._studies)
        room = max(1, min(pool.capacity, IN_FLIGHT * len(turn)))
        try:
            while True:
                while turn and len(self._running) < room:
                    attacker = turn.popleft()
                    trial = self._studies[attacker].ask()
                    if trial is None:
                        continue  # it has its budget, and its turn does not come again
                    turn.append(attacker)
                    done += self._begun(attacker, trial, pool)
                if not self._running:
                    return
                for ended in pool.wait():
                    done += self._ended(ended)
                    emit(Progress(what=ended.job.label, done=min(done, total), total=total))
        finally:
            pool.close()

    def _begun(self, attacker: Attacker, trial: Trial, pool: Any) -> int:
        """Begin a trial, unless its result is stored or its job is running; returns how many have ended so."""
        chosen = draw(trial, attacker.space)
        job = attacker.trial(chosen)
        values = self._results.read(job)
        if values is not None:
            self._tell(attacker, trial, values)
            return 1
        if job in self._running:
            self._running[job].append((attacker, trial))
        else:
            self._running[job] = [(attacker, trial)]
            pool.submit(job)
        return 0

    def _ended(self, ended: Ended[Job]) -> int:
        who = self._running.pop(ended.job)
        if ended.error is not None and not _of_the_choice(ended.error):
            raise ended.error  # a full disk, a lost cluster: the trials are asked for again when the search goes on
        for attacker, trial in who:
            if ended.error is None:
                self._tell(attacker, trial, ended.outcome)
            else:
                why = f"{type(ended.error).__name__}: {ended.error}"
                self._studies[attacker].tell(trial, REFUSED, {"error": why})  # with a score, so that it is learnt from
        return len(who)

    def _tell(self, attacker: Attacker, trial: Trial, values: Mapping[str, Any]) -> None:
        self._studies[attacker].tell(trial, score(values, self._clean[attacker]))

    def against(self, attacker: Attacker) -> Against:
        """What has been found against a defence."""
        clean = self._clean[attacker]
        attempts = tuple(self._attempt(attacker, told, clean) for told in self._studies[attacker].told())
        return Against(attacker, clean, attempts, tuple((each, best(attempts, each)) for each in TOLERANCES))

    def _attempt(self, attacker: Attacker, told: Told, clean: Mapping[str, Any]) -> Attempt:
        chosen: Chosen = draw(Known(told.number, told.parameters), attacker.space)
        job = attacker.trial(chosen)
        error = told.notes.get("error")
        values = None if error else self._results.read(job)
        if values is None and error is None:
            error = "its stored result is gone"
        return Attempt(told.number, chosen, job.key, values, clean, error)


def _of_the_choice(error: BaseException) -> bool:
    """Whether another choice may do better: rows that cannot be made, a second job that a defence refuses, a loss that
    is not a number."""
    return isinstance(error, AntibodyError) and not isinstance(error, OutputError)


def _control(searched: Searched, able: Sequence[Attacker], runs: Callable[[Sequence[Job]], Outcome]) -> None:
    """Find the owner's best setting for each alignment; further ones are tried while none of them wins."""
    owners = {alignment_of(each): each for each in able}
    known: dict[str, dict[tuple[float, int], float]] = {name: {} for name in owners}
    for setting in CONTROLS:
        left = {name: each for name, each in owners.items() if max(known[name].values(), default=0.0) < WINS}
        jobs = {name: each.owning(setting, each.seed, CHOOSING) for name, each in left.items()}
        found = runs(with_needs(jobs.values())) if jobs else Outcome()
        searched.failed += failures(found, found.errors)
        for name, job in jobs.items():
            if job in found.values:
                known[name][setting] = upload_harm(found.values[job])
    searched.controls = {
        name: (owners[name], max(tried, key=lambda setting: tried[setting])) for name, tried in known.items() if tried
    }


def alignment_of(attacker: Attacker) -> str:
    """The key of the alignment whose weights are owned; of a model that is attacked as it is, empty."""
    aligned = attacker.clean(attacker.seed, CHOOSING).needs
    return "" if aligned is None else aligned.key


def _report(searched: Searched, runs: Callable[[Sequence[Job]], Outcome]) -> None:
    """Measure what has been found on the other half, on every seed."""
    jobs = list[Job]()
    for seed in searched.matrix.seeds:
        for each in searched.against:
            chosen = dict.fromkeys(attempt.key for _, attempt in each.found if attempt is not None)
            by_key = {attempt.key: attempt for _, attempt in each.found if attempt is not None}
            jobs += [each.attacker.reported(by_key[key].chosen, seed) for key in chosen]
            jobs += [each.attacker.clean(seed, REPORTING), each.attacker.plain(seed)]
        jobs += [owner.owning(setting, seed, REPORTING) for owner, setting in searched.controls.values()]
    found = runs(with_needs(jobs))
    searched.values = found.values
    searched.failed += failures(found, found.errors)
