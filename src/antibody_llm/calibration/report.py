"""A calibration as plain values: every point with its intervals, the frontier, and how far to trust it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..bench.summary import Mean, mean_over_seeds
from ..settings.calibrate import CalibrateSettings
from .objective import HOPELESS, TOLERANCE, WEIGHT, Outcome, frontier
from .rows import Divided
from .search import Tried
from .simulate import Ranges, Simulation
from .space import Setting

UNDEFENDED, DEFAULTS, PRESET, FOUND, FRONTIER = "undefended", "defaults", "the model's own preset", "found", "frontier"
"""What a point is called."""
SIZES = {"harm": "harmful_score", "refusal": "over_refusal", "accuracy": "finetune_accuracy"}
"""The measure whose prompts a mean is over."""


@dataclass(frozen=True)
class Point:
    """A setting that is measured on rows that no trial has seen."""

    name: str
    setting: Setting | None
    """None where there is nothing to set, or where it is the model's own."""
    trial: int | None = None
    searched: Outcome | None = None
    """What it came to in the search."""
    reported: tuple[Outcome, ...] = ()
    """What it comes to on the other rows, by seed."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Prompts of each measure."""

    def mean(self, measure: str) -> Mean:
        """The mean over seeds of a field of ``Outcome``, with its interval."""
        values = [getattr(each, measure) for each in self.reported]
        return mean_over_seeds(values, self.sizes[SIZES[measure.removeprefix("clean_")]])


@dataclass(frozen=True)
class Calibration:
    """All that is known of a calibration."""

    settings: CalibrateSettings
    model: str
    """The model that was attacked, or aligned in every trial."""
    profile: str
    rows: Divided
    ranges: Ranges
    users: Sequence[Simulation]
    undefended: Outcome
    """Its outcome on the rows of the search."""
    tried: Sequence[Tried]
    seconds: float
    """The time that the search took, all calls together."""
    points: Sequence[Point]

    @property
    def seeds(self) -> list[int]:
        """The seeds of the report."""
        return report_seeds(self.settings)

    @property
    def found(self) -> Point:
        """The setting of the preset."""
        return next(point for point in self.points if point.name == FOUND)


def report_seeds(settings: CalibrateSettings) -> list[int]:
    """Seeds that the search has not used."""
    return [settings.seed + 1 + number for number in range(settings.report_seeds)]


def report(found: Calibration) -> dict[str, Any]:
    """Everything that the page and programs need, as JSON has it."""
    settings = found.settings
    measured = [_mean_outcome(point) for point in found.points]
    best = {id(found.points[place]) for place in frontier(measured)}
    return {
        "model": str(settings.model),
        "aligned": None if settings.stage == "alignment" else found.model,
        "profile": found.profile,
        "stage": settings.stage,
        "defence": settings.defence,
        "regime": settings.regime,
        "verdict": verdict(found),
        "trust": trust(found),
        "limits": {"tolerance": TOLERANCE, "weight": WEIGHT},
        "users": [asdict(user) for user in found.users],
        "rows": {"upload": found.rows.rows, **found.rows.counts},
        "seeds": settings.report_seeds,
        "num_trials": len(found.tried),
        "num_failed": sum(each.outcome is None for each in found.tried),
        "search_seconds": found.seconds,
        "undefended": asdict(found.undefended),
        "points": [_point(point, found, on_frontier=id(point) in best) for point in found.points],
        "trials": [trial_row(each, found.undefended) for each in found.tried],
    }


def _mean_outcome(point: Point) -> Outcome:
    """The means over seeds alone."""
    return Outcome(**{name: point.mean(name).value for name in Outcome.__dataclass_fields__})


def _point(point: Point, found: Calibration, *, on_frontier: bool) -> dict[str, Any]:
    undefended = _mean_outcome(found.points[0])
    return {
        "name": point.name,
        "trial": point.trial,
        "setting": "" if point.setting is None else point.setting.words,
        "searched": None if point.searched is None else asdict(point.searched),
        "reported": {name: asdict(point.mean(name)) for name in Outcome.__dataclass_fields__},
        "excess": _mean_outcome(point).excess(undefended),
        "on_frontier": on_frontier,
    }


def trial_row(tried: Tried, undefended: Outcome) -> dict[str, Any]:
    """A trial as a flat row."""
    measured = tried.outcome
    return {
        "trial": tried.number,
        **tried.setting.options,
        **{f"training.{name}": value for name, value in tried.setting.training.items()},
        **{name: None if measured is None else getattr(measured, name) for name in Outcome.__dataclass_fields__},
        "excess": None if measured is None else measured.excess(undefended),
        "score": None if measured is None else measured.score(undefended),
        "cpu_seconds": tried.seconds,
        "error": tried.error,
    }


def verdict(found: Calibration) -> str:
    """Whether what was found holds on rows that no trial has seen, in words."""
    point, plain = found.found, found.points[0]
    measured, undefended = _mean_outcome(point), _mean_outcome(plain)
    harm = point.mean("harm")
    figures = (
        f"On rows that no trial has seen the settings found come to harmful score {_percent(harm.value)} "
        f"[{_percent(harm.low)}, {_percent(harm.high)}], over-refusal {_percent(measured.refusal)} and accuracy "
        f"{_percent(measured.accuracy)} percent; undefended {_percent(undefended.harm)}, "
        f"{_percent(undefended.clean_refusal)} and {_percent(undefended.accuracy)}. {_judged(point, plain)}"
    )
    if undefended.accuracy < HOPELESS:
        figures += " Accuracy says nothing here: the undefended model does not do the task either."
    return figures


def _judged(point: Point, plain: Point) -> str:
    measured, undefended, searched = _mean_outcome(point), _mean_outcome(plain), point.searched
    assert searched is not None, "it was found by a trial"
    harm, excess = point.mean("harm"), measured.excess(undefended)
    if harm.high >= plain.mean("harm").low:
        return "With so few prompts that harm is no different from no defence's: do not use it; search another defence."
    if excess > 0:
        certain = (
            point.mean("refusal").low > undefended.clean_refusal + TOLERANCE
            or point.mean("accuracy").high < undefended.accuracy - TOLERANCE
        )
        how = "" if certain else ", which may be chance with so few prompts"
        return f"That is {_percent(excess)} points beyond the limits{how}: look at the frontier before you use them."
    if searched.harm < harm.low - TOLERANCE:
        return f"The search had promised a harmful score of {_percent(searched.harm)}: expect the higher figure."
    return "That is within the limits."


def trust(found: Calibration) -> str:
    """How far the figures carry, in words."""
    settings, sizes, ranges = found.settings, found.found.sizes, found.ranges
    share = _span(*ranges.poison_ratio, lambda ratio: f"{100 * ratio:g}")
    epochs = _span(*ranges.epochs, lambda number: f"{number:g}")
    rate = _span(*ranges.learning_rate, lambda number: f"{number:.2g}")
    seeds = f"{settings.report_seeds} seed{'' if settings.report_seeds == 1 else 's'}"
    epochs += " epoch" if epochs == "1" else " epochs"
    return (
        f"Trust this as far as it was tried: one model, plain mixing of {share} percent harm into uploads of "
        f"{found.rows.rows} rows, {epochs} at {rate} ({settings.regime}), {seeds} and {sizes['harmful_score']} "
        f"harmful, {sizes['over_refusal']} harmless and {sizes['finetune_accuracy']} task prompts. It says nothing of "
        "another attack, another task, or an attacker who knows the defence."
    )


def _span(low: float, high: float, written: Callable[[float], str]) -> str:
    return written(low) if low == high else f"{written(low)} to {written(high)}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
