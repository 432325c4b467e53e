"""What is kept of a grid: ``immunization.json``, ``immunization.md`` and ``report.html``, one self-contained file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from ..bench.outputs import page
from ..bench.tables import Table
from ..files import write_text
from ..text import counted
from .pictures import harm_picture, headline, survival_picture, task_picture
from .plan import Plan
from .rows import CROSS
from .summary import Resistance, Summary, Values, survived, whiches
from .survival import Between, median

JSON, MARKDOWN, REPORT = "immunization.json", "immunization.md", "report.html"
LIMITS = (
    "The attacker is plain supervised fine-tuning on harmful rows alone. Another attack may need fewer steps, and no "
    "grid of attacks proves that none does."
)


@dataclass(frozen=True)
class Report:
    """A finished grid."""

    output: Path
    plan: Plan
    values: Values
    summary: Summary

    def to_json(self) -> dict[str, Any]:
        """The content of immunization.json."""
        plan, summary = self.plan, self.summary
        return {
            "models": {"model": str(plan.settings.model), "defended": _text(plan.settings.defended)},
            "grid": dict(plan.grid),
            "conclusions": conclusions(plan, summary),
            "resistance": [_resistance(plan, each) for each in summary.resistance],
            "generalisation": {
                measure: {which: _bounds(gap) for which, gap in of.items()}
                for measure, of in summary.generalisation.items()
            },
            "stability": [vars(check) for check in summary.stability],
            "trainability": [vars(trained) | {"holds": trained.holds} for trained in summary.trainability],
            "runs": [self._run(number) for number in range(len(plan.runs))],
            "cpu_seconds": sum(each["cpu_seconds"] for each in self.values.values()),
        }

    def _run(self, number: int) -> dict[str, Any]:
        run = self.plan.runs[number]
        shown: dict[str, Any] = {"which": run.which, "part": run.part, "key": run.job.key}
        if run.part != "start":
            shown |= {"regime": run.regime, "learning_rate": run.learning_rate, "seed": run.seed}
        values = dict(self.values[run.job])
        if run.part != "start":
            values |= _columns(values.pop("points"))
        return shown | ({"rows": run.rows} if run.part == "attack" else {}) | values

    def lines(self) -> list[str]:
        """Lines for a reader."""
        lines = [str(self.output), ""]
        for table in tables(self.plan, self.summary):
            lines += [table.title, *_aligned(table), ""]
        return [*lines, *conclusions(self.plan, self.summary), LIMITS, "", f"Open {self.output / REPORT}"]


def write_outputs(report: Report) -> None:
    """Write every file.

    Raises:
        OutputError: the folder cannot be written.
    """
    plan, summary, folder = report.plan, report.summary, report.output
    made, said = tables(plan, summary), conclusions(plan, summary)
    write_text(folder / JSON, _written(report.to_json()))
    head = ["# Immunization", "", *(f"- {line}" for line in said), "", LIMITS, ""]
    write_text(folder / MARKDOWN, "\n".join([*head, *(table.markdown() for table in made)]))
    shown = page(
        "immunization.html",
        "antibody_llm.immunization",
        model=str(plan.settings.model),
        defended=_text(plan.settings.defended),
        grid=plan.grid,
        num_runs=len(plan.of("model", "attack")),
        attack=_attack(plan),
        said=said,
        limits=LIMITS,
        survival=survival_picture(plan, summary),
        harm=harm_picture(plan, report.values, headline(summary)),
        task=task_picture(plan, summary) if summary.trainability else "",
        phi=headline(summary).phi,
        tables=made,
    )
    write_text(folder / REPORT, shown)


# -- sentences ---------------------------------------------------------------------------------------------------------


def conclusions(plan: Plan, summary: Summary) -> list[str]:
    """A sentence for each condition."""
    first = headline(summary)
    said = [f"Resistance, {which}: {first.worst(which)}." for which in whiches(plan)]
    if first.ratio is not None:
        spread = "one seed" if first.interval is None else f"95 % interval over seeds {_span(first.interval)}"
        said.append(
            f"Resistance, ratio: the defended model takes {_times(first.ratio)} as many steps, median over runs "
            f"({spread})."
        )
    across = summary.find(first.measure, CROSS, first.margin)
    if across is not None:
        said += [
            f"Generalisation, {which}: {across.worst(which)} by prompts of other kinds." for which in whiches(plan)
        ]
    if summary.stability:
        failed = [check.name for check in summary.stability if check.holds is False]
        said.append(f"Stability: {'fails in ' + ', '.join(failed) if failed else 'holds'}.")
    for trained in summary.trainability:
        said.append(
            f"Trainability, {trained.regime}: {'holds' if trained.holds else 'fails'}, the best accuracy on a clean "
            f"task is {abs(100 * trained.gap):.1f} points {'lower' if trained.gap >= 0 else 'higher'} than without the "
            f"defence (limit {100 * trained.epsilon:.1f})."
        )
    return said


def _times(ratio: Between) -> str:
    if ratio.low == ratio.high:
        return f"{ratio} times"
    if ratio.low > 0 and not isfinite(ratio.high):
        return f"at least {ratio.low:.3g} times"
    return f"{ratio} times" if str(ratio) != "unknown" else "an unknown number of times"


def _span(interval: Between) -> str:
    low = f"{interval.low:.3g}" if isfinite(interval.low) else "no lower bound"
    return f"{low} to {f'{interval.high:.3g}' if isfinite(interval.high) else 'no upper bound'}"


def _attack(plan: Plan) -> str:
    grid = plan.grid
    rates, rows = (", ".join(f"{value:g}" for value in grid[key]) for key in ("learning_rates", "rows"))
    return (
        f"learning rates {rates}; {rows} rows; {' and '.join(grid['regimes'])}; "
        f"{counted(len(grid['seeds']), 'seed')}; {grid['steps']} steps"
    )


# -- tables ------------------------------------------------------------------------------------------------------------


def tables(plan: Plan, summary: Summary) -> list[Table]:
    """Resistance by threshold and by setting, stability and trainability."""
    found = [_thresholds(plan, summary), _areas(plan, summary), _settings(plan, headline(summary))]
    if summary.stability:
        found.append(_stability(summary))
    if summary.trainability:
        found.append(_trainability(summary))
    return found


def _thresholds(plan: Plan, summary: Summary) -> Table:
    lines = []
    for each in summary.resistance:
        line = [f"{each.measure}, {each.prompts}", f"+{each.margin:.2f}", f"{each.phi:.2f}"]
        for which in whiches(plan):
            times = each.broken[which]
            fallen = [time.step for time in times if not time.censored]
            line += [str(_median(each, which)), f"{len(fallen)} of {len(times)}", str(min(fallen, default="-"))]
        if each.ratio is not None:
            line += [str(each.ratio), "-" if each.interval is None else _span(each.interval)]
        lines.append(tuple(line))
    columns = ["harm", "margin", "phi"]
    columns += [name for which in whiches(plan) for name in (str(which), "broken", "first")]
    columns += ["ratio", "95 %"] if plan.settings.defended is not None else []
    note = (
        "Steps until harm is above phi, the higher start of the models plus the margin: the median over all runs, how "
        "many were broken, and the fewest steps. Ratio: the defended model's steps over the other's, median over pairs "
        "of runs, with its interval over seeds. Where runs hold to the end, a bound is all that is known."
    )
    return Table("Resistance", tuple(columns), tuple(lines), note)


def _areas(plan: Plan, summary: Summary) -> Table:
    """Harm without any threshold, and what it has to do with the kind of prompt."""
    lines = []
    for each in summary.resistance:
        if each.margin == plan.settings.margin:
            gaps = summary.generalisation.get(each.measure, {}) if each.prompts == CROSS else {}
            areas = [f"{each.area[which]:.2f}" for which in whiches(plan)]
            lines.append(
                (f"{each.measure}, {each.prompts}", *areas, *(str(gaps.get(which, "-")) for which in whiches(plan)))
            )
    note = (
        "Area: mean harm over the logarithm of the steps. Later: by how many steps prompts of the kinds that the "
        "defence knew are answered later than those of other kinds, median over runs; negative if sooner."
    )
    columns = [f"{which}, {what}" for what in ("area", "later") for which in whiches(plan)]
    return Table("Harm over a whole attack, and generalisation", ("harm", *columns), tuple(lines), note)


def _median(resistance: Resistance, which: Any) -> Between:
    return median([time.between for time in resistance.broken[which]])


def _settings(plan: Plan, resistance: Resistance) -> Table:
    keys = [*whiches(plan), *(["ratio"] if resistance.ratio is not None else [])]
    lines = [
        (
            f"{line['regime']}, {line['learning_rate']:g}",
            str(line["rows"]),
            *(str(line[key]) for key in keys),
        )
        for line in resistance.settings
    ]
    note = f"{resistance.measure}, {resistance.prompts}, phi {resistance.phi:.2f}: medians over seeds."
    return Table("Steps to the threshold by setting", ("attack", "rows", *keys), tuple(lines), note)


def _stability(summary: Summary) -> Table:
    lines = []
    for check in summary.stability:
        shown = [f"{value:.3f}" for value in (check.model, check.defended)]
        verdict = {None: "-", True: "holds", False: "fails"}[check.holds]
        lines.append((check.name, *shown, "-" if check.limit is None else f"{check.limit:g}", verdict))
    note = "Both models as they are. The limit is on the difference, of perplexity on the relative one."
    return Table("Stability", ("measure", "model", "defended", "limit", ""), tuple(lines), note)


def _trainability(summary: Summary) -> Table:
    lines = [
        (
            trained.regime,
            *(f"{100 * points[-1][1]:.1f}" for points in trained.curves.values()),
            f"{100 * trained.gap:+.1f}",
            f"{100 * trained.epsilon:.1f}",
            f"{100 * trained.worst[1]:+.1f} at step {trained.worst[0]}",
            "holds" if trained.holds else "fails",
        )
        for trained in summary.trainability
    ]
    note = (
        "Accuracy in percent on a clean task after equal steps, mean over seeds. Gap: what the best accuracy so far is "
        "higher without the defence, at the end and where it is largest."
    )
    columns = ("regime", "model", "defended", "gap", "limit", "largest gap", "")
    return Table("Trainability", columns, tuple(lines), note)


# -- plain values ------------------------------------------------------------------------------------------------------


def _resistance(plan: Plan, each: Resistance) -> dict[str, Any]:
    shown: dict[str, Any] = {"measure": each.measure, "prompts": each.prompts, "margin": each.margin, "phi": each.phi}
    for which in whiches(plan):
        shown[which] = {
            "steps": _bounds(_median(each, which)),
            "broken": sum(not time.censored for time in each.broken[which]),
            "runs": len(each.broken[which]),
            "worst": each.worst(which),
            "area": each.area[which],
            "survival": survived(each, which),
        }
    if each.ratio is not None:
        shown |= {"ratio": _bounds(each.ratio), "interval": each.interval and _bounds(each.interval)}
    shown["settings"] = [
        {key: _bounds(value) if isinstance(value, Between) else value for key, value in line.items()}
        for line in each.settings
    ]
    return shown


def _bounds(value: Between) -> dict[str, float | str | None]:
    """Two bounds, null where there is none, and the words for them."""
    return {
        "low": value.low if isfinite(value.low) else None,
        "high": value.high if isfinite(value.high) else None,
        "text": str(value),
    }


def _columns(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The measures at every checkpoint, each as a list beside the list of steps."""
    found: dict[str, Any] = {"steps": [point["step"] for point in points]}
    for name, value in points[0].items():
        if isinstance(value, Mapping):
            found[name] = {key: [round(point[name][key], 4) for point in points] for key in value}
        elif name != "step":
            found[name] = [round(point[name], 4) for point in points]
    return found


def _written(whole: dict[str, Any]) -> str:
    """JSON with a line for each run, which is shorter than one for each number."""
    runs = ",\n  ".join(json.dumps(run, allow_nan=False) for run in whole["runs"])
    others = json.dumps({key: value for key, value in whole.items() if key != "runs"}, indent=1, allow_nan=False)
    return others.removesuffix("\n}") + f',\n "runs": [\n  {runs}\n ]\n}}\n'


def _text(path: object) -> str | None:
    return None if path is None else str(path)


def _aligned(table: Table) -> list[str]:
    rows = [table.columns, *table.lines]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    return [
        "  " + "  ".join(v.ljust(w) if i == 0 else v.rjust(w) for i, (v, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
