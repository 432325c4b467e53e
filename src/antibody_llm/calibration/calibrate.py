"""The calibration carried out: rows divided, uploads simulated, settings searched, the best measured on other rows.

    rows/            every part as a file
    results/ ...     finished jobs, as `antibody bench` keeps them; alignments/, working/, locks/
    studies/KEY/     the choices of the search
    preset.yaml      the settings found, for a verb's configuration file
    matrix.yaml      the same settings against the undefended model, for `antibody bench`
    report.html      report.json, trials.parquet

The same call goes on where it was stopped; with more trials or minutes it searches on.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..bench import run as engine
from ..bench.job import Job, digest
from ..bench.pools.local import num_cores
from ..bench.pools.pool import carried_out
from ..bench.results import Results
from ..bench.run import MakePool, Work
from ..bench.work import carry_out
from ..data.roles import Stage
from ..errors import AntibodyError, ConfigError, EvaluationError
from ..evaluation.judges.registry import make_judge
from ..events import Progress, emit, warn
from ..mentions import setting
from ..paths import checked_output
from ..profiles import Profile, profile_of
from ..runs.trainer_config import check_seed, parse_training
from ..runs.verb import verb
from ..searching import open_study
from ..settings.calibrate import TRIALS, CalibrateSettings
from ..store.naming import model_name
from .objective import HOPELESS, Outcome, chosen, frontier, outcome
from .outputs import write_calibration
from .report import DEFAULTS, FOUND, FRONTIER, PRESET, UNDEFENDED, Calibration, Point, report_seeds
from .rows import REPORT, SEARCH, divided, warn_of_fitted_prompts
from .search import ENDLESS, Search, Tried, of_the_setting
from .simulate import Ranges, Simulator, simulations
from .space import VERSION, defaults, find_space, split

DRAWN_FIRST = 6
"""Trials that are drawn at random, the defaults included, before the search is guided."""


@dataclass(frozen=True)
class Calibrated:
    """What a calibration leaves."""

    output: Path
    files: Mapping[str, str]
    """Paths by kind: preset, matrix, report, values, trials."""
    report: Mapping[str, Any]
    """The content of report.json."""

    def to_json(self) -> dict[str, Any]:
        """The JSON object that a program reads."""
        return {"output": str(self.output), "files": dict(self.files), **self.report}


@verb(CalibrateSettings)
def calibrate(settings: CalibrateSettings) -> Calibrated:
    """Find a defence's settings for a model, from the provider's rows.

    Args:
        settings: What to search, on what, and for how long.

    Raises:
        AntibodyError: whatever a user can fix.
    """
    jobs = settings.jobs or max(1, num_cores() // settings.threads)
    return carry_through(settings, make_pool=engine.local(jobs), work=carry_out)


def carry_through(settings: CalibrateSettings, *, make_pool: MakePool, work: Work) -> Calibrated:
    """Carry a calibration out, or go on with it, by any pool and any function that does a job."""
    find_space(Stage(settings.stage), settings.defence)
    profile = _checked(settings)
    folder = checked_output(settings.output).absolute()
    rows, ranges = divided(settings, profile, folder / "rows"), Ranges.of(settings, profile)
    users = simulations(ranges, settings.simulations, rows=rows.rows, seed=settings.seed)
    answer = settings.answer or profile.answer(settings.task or profile.default_task)
    judge = settings.judge or profile.judges[0]
    simulator = Simulator(settings, model_name(settings.model), rows, users, judge, answer)
    runs = _Runs(folder, make_pool, work)
    if settings.alignment is None:
        warn_of_fitted_prompts(simulator.model, rows)
    else:
        aligned = simulator.aligned(settings.alignment, settings.seed)
        runs.all([aligned], "alignment")
        simulator = replace(simulator, model=str(_model(runs.results.aligned(aligned))))
    plain = simulator.jobs("sft", None, SEARCH, [settings.seed])[0]
    undefended = outcome(runs.all(plain, "undefended"))
    if undefended.accuracy < HOPELESS:
        warn(
            f"the undefended model does {100 * undefended.accuracy:.0f} % of the users' task, so that accuracy says "
            f"nothing here. Give {setting('data')} with short answers, or another rule as {setting('answer')}."
        )
    tried, seconds = _search(settings, simulator, undefended, plain, runs)
    points = _points(settings, profile, tried, undefended)
    points = _reported(settings, simulator, points, runs)
    found = Calibration(
        settings, simulator.model, profile.name, rows, ranges, users, undefended, tried, seconds, points
    )
    return Calibrated(folder, *write_calibration(folder, found, simulator))


def _checked(settings: CalibrateSettings) -> Profile:
    """The model's profile, everything that can be checked before any work being checked.

    Raises:
        ConfigError: a value does not fit, or no judge is named.
        ModelError: there is no such model.
    """
    check_seed(settings.seed)
    parse_training(settings.training or {})
    profile = profile_of(model_name(settings.model))
    if settings.judge is None and not profile.judges:
        raise ConfigError(
            f"{setting('judge')} is missing: {settings.model} brings none. Name one: keywords is a weak baseline that "
            "only looks for refusal phrases.",
            field="judge",
        )
    if settings.judge is not None:
        make_judge(settings.judge)
    return profile


class _Runs:
    """Does the jobs of a calibration that no search asks for."""

    def __init__(self, folder: Path, make_pool: MakePool, work: Work) -> None:
        self.results = Results(folder)
        self.pool = partial(make_pool, partial(work, folder))

    def do(self, jobs: Iterable[Job], what: str) -> dict[Job, BaseException]:
        """Do what is left of some jobs; returns the errors of those that a user can fix.

        Raises:
            BaseException: a fault, or an error of the disk.
        """
        once = dict.fromkeys(jobs)
        needs = dict.fromkeys(job.needs for job in once if job.needs is not None)
        left = [job for job in dict.fromkeys([*needs, *once]) if self.results.read(job) is None]
        if not left:
            return {}
        errors = dict[Job, BaseException]()
        emit(Progress(what=what, done=0, total=len(left)))
        for done, ended in enumerate(carried_out(left, self.pool(), lambda job: job.needs), start=1):
            if ended.error is not None:
                if not of_the_setting(ended.error):
                    raise ended.error
                errors[ended.job] = ended.error
            emit(Progress(what=f"{what}: {ended.job.label}", done=done, total=len(left)))
        return errors

    def values(self, jobs: Sequence[Job], errors: Mapping[Job, BaseException]) -> list[Mapping[str, Any]]:
        """What is stored of jobs that have been done.

        Raises:
            AntibodyError: that of one that failed.
        """
        failed = next((errors[job] for job in jobs if job in errors), None)
        if failed is not None:
            raise failed
        found = [self.results.read(job) for job in jobs]
        assert all(values is not None for values in found), "every job has been done"
        return [values for values in found if values is not None]

    def all(self, jobs: Sequence[Job], what: str) -> list[Mapping[str, Any]]:
        """What comes of jobs, those that are not stored being done.

        Raises:
            AntibodyError: that of one that failed.
        """
        return self.values(jobs, self.do(jobs, what))


def _model(run: Path) -> Path:
    return next(run / kind for kind in ("model", "adapter") if (run / kind).is_dir())


def _search(
    settings: CalibrateSettings, simulator: Simulator, undefended: Outcome, plain: Sequence[Job], runs: _Runs
) -> tuple[list[Tried], float]:
    """Every trial that has ended, and the seconds that the search has taken.

    Raises:
        EvaluationError: none came to an end.
    """
    stage = Stage(settings.stage)
    trials = settings.trials or (TRIALS if settings.minutes is None else ENDLESS)
    first = defaults(stage, settings.defence)
    opening = simulator.jobs(settings.defence, split(first), SEARCH, [settings.seed])[0]
    key = digest([VERSION, str(stage), settings.defence, *(job.key for job in (*plain, *opening))])
    with open_study(
        runs.results.folder / "studies" / key, seed=settings.seed, budget=trials, startup=DRAWN_FIRST, first=[first]
    ) as study:
        search = Search(
            study,
            find_space(stage, settings.defence),
            lambda found: simulator.jobs(settings.defence, found, SEARCH, [settings.seed])[0],
            lambda found: found.score(undefended),
            runs.results,
            trials=trials,
            minutes=settings.minutes,
        )
        search.run(runs.pool())
        tried, seconds = search.tried(), search.elapsed
    if all(each.outcome is None for each in tried):
        why = next((each.error for each in tried if each.error), "none was begun")
        raise EvaluationError(f"no trial came to an end ({why}). Fix what it says, or search another defence.")
    return tried, seconds


def _points(settings: CalibrateSettings, profile: Profile, tried: Sequence[Tried], undefended: Outcome) -> list[Point]:
    """What is to be measured for the report: no defence, its defaults, the model's own preset, the best trials."""
    stage = Stage(settings.stage)
    able = [(each, each.outcome) for each in tried if each.outcome is not None]
    outcomes = [measured for _, measured in able]
    best, first = chosen(outcomes, undefended), split(defaults(stage, settings.defence))
    known = (able[best][0].setting, first)
    others = [
        place
        for place in frontier(outcomes)
        if able[place][0].setting not in known and outcomes[place] != outcomes[best]
    ]
    if len(others) > settings.frontier:  # evenly over the frontier, its ends included
        step = (len(others) - 1) / max(1, settings.frontier - 1)
        others = [others[round(number * step)] for number in range(settings.frontier)]
    at_defaults = next((measured for each, measured in able if each.setting == first), None)
    points = [Point(UNDEFENDED, None, searched=undefended), Point(DEFAULTS, first, searched=at_defaults)]
    options, _ = profile.calibration(str(stage), settings.defence, settings.regime)
    if options or (stage is Stage.ALIGNMENT and profile.name != Profile.name):
        points.append(Point(PRESET, None))
    for name, place in ((FOUND, best), *((FRONTIER, place) for place in others)):
        each, measured = able[place]
        points.append(Point(name, each.setting, each.number, measured))
    return points


def _reported(settings: CalibrateSettings, simulator: Simulator, points: Sequence[Point], runs: _Runs) -> list[Point]:
    """The points with what they come to on rows that no trial has seen."""
    seeds = report_seeds(settings)
    jobs = {
        number: simulator.jobs("sft" if point.name == UNDEFENDED else settings.defence, point.setting, REPORT, seeds)
        for number, point in enumerate(points)
    }
    errors = runs.do((job for of_seeds in jobs.values() for of_seed in of_seeds for job in of_seed), "report")
    measured = []
    for number, point in enumerate(points):
        try:
            values = [runs.values(of_seed, errors) for of_seed in jobs[number]]
        except AntibodyError as error:
            if point.name in (UNDEFENDED, FOUND):
                raise
            warn(f"{point.name} cannot be measured for the report ({error}).")
            continue
        sizes = {name: int(values[0][0][name]["n"]) for name in ("harmful_score", "over_refusal", "finetune_accuracy")}
        measured.append(replace(point, reported=tuple(outcome(each) for each in values), sizes=sizes))
    return measured
