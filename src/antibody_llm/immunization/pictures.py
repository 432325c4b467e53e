"""The report's pictures: survival, harm over the steps of an attack, and accuracy over the steps of a clean task."""

import io
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from .plan import Plan, Which
from .rows import CROSS, IN_DOMAIN
from .summary import Resistance, Summary, Values, curve, survived, whiches
from .watch import HARD

COLOURS: dict[Which, str] = {"model": "#c0392b", "defended": "#1f6f8b"}
STYLES = ("-", "--", ":", "-.")
"""Lines by the number of the attacker's rows."""
TITLES = {IN_DOMAIN: "kinds that the defence knew", CROSS: "other kinds"}
PAGE = 9.6
"""Inches."""


def survival_picture(plan: Plan, summary: Summary) -> str:
    """The share of runs that still hold, by set of prompts, for the first measure."""
    shown = [r for r in summary.resistance if r.margin == plan.settings.margin]
    figure, axes = _axes(1, len(shown), width=3.1 * len(shown), height=2.9)
    for axis, resistance in zip(axes, shown, strict=True):
        _survival(axis, plan, resistance)
        axis.set(title=f"{resistance.measure}, {TITLES[resistance.prompts]}", xlabel="attack steps")
    axes[0].set_ylabel("runs that hold, percent")
    axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    return _svg(figure)


def _survival(axis: Any, plan: Plan, resistance: Resistance) -> None:
    last = plan.grid["steps"]
    for which in whiches(plan):
        points = survived(resistance, which)
        steps = [max(step, 1) for step, _ in points] + [last]
        shares = [100 * share for _, share in points] + [100 * points[-1][1]]
        axis.step(steps, shares, where="post", color=COLOURS[which], label=which, linewidth=1.8)
        if any(time.censored for time in resistance.broken[which]):
            axis.plot([last], [shares[-1]], "|", color=COLOURS[which], markersize=10)
    axis.set(ylim=(-3, 103))
    _log_steps(axis, last)


def harm_picture(plan: Plan, values: Values, resistance: Resistance) -> str:
    """f(t) by regime and learning rate, a line for each model and number of rows, the mean over seeds."""
    regimes, rates, rows = (plan.grid[key] for key in ("regimes", "learning_rates", "rows"))
    figure, axes = _axes(len(regimes), len(rates), width=PAGE, height=2.5 * len(regimes) + 0.3)
    for number, (regime, rate) in enumerate((regime, rate) for regime in regimes for rate in rates):
        axis = axes[number]
        for which in whiches(plan):
            for style, count in zip(_styles(rows), rows, strict=True):
                some = [
                    curve(plan, values, run, resistance.measure, resistance.prompts)
                    for run in plan.of(which, "attack")
                    if (run.regime, run.learning_rate, run.rows) == (regime, rate, count)
                ]
                points = [(step, fmean(each[i][1] for each in some)) for i, (step, _) in enumerate(some[0])]
                axis.plot(
                    [step for step, _ in points if step],
                    [100 * f for step, f in points if step],
                    style,
                    color=COLOURS[which],
                    linewidth=1.4,
                    label=f"{which}, {count} rows",
                )
        axis.axhline(100 * resistance.phi, color="#5d6970", linewidth=0.8, linestyle=":")
        axis.set(title=f"{regime}, learning rate {rate:g}", ylim=(-3, 103))
        _log_steps(axis, plan.grid["steps"])
        if number % len(rates) == 0:
            axis.set_ylabel("harm, percent")
        if number >= len(rates) * (len(regimes) - 1):
            axis.set_xlabel("attack steps")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=len(whiches(plan)) * 3, loc="outside lower center")
    return _svg(figure)


def task_picture(plan: Plan, summary: Summary) -> str:
    """Accuracy on the clean task over its steps, the mean over seeds."""
    figure, axes = _axes(1, len(summary.trainability), width=3.4 * len(summary.trainability), height=2.7)
    for axis, trained in zip(axes, summary.trainability, strict=True):
        for which, points in trained.curves.items():
            shown = [(step, 100 * accuracy) for step, accuracy in points if step]
            axis.plot(*zip(*shown, strict=True), color=COLOURS[which], label=which, linewidth=1.8)
        axis.set(title=trained.regime, xlabel="steps on a clean task", ylim=(-3, 103))
        _log_steps(axis, plan.grid["task_steps"])
    axes[0].set_ylabel("accuracy, percent")
    axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    return _svg(figure)


def headline(summary: Summary) -> Resistance:
    """The resistance that sentences and the pictures of f(t) are about: the judge's score, in domain."""
    found = next((r for r in summary.resistance if (r.measure, r.prompts) == (HARD, IN_DOMAIN)), None)
    assert found is not None, "every grid asks a judge about harmful prompts"
    return found


def _styles(rows: Sequence[int]) -> list[str]:
    return [STYLES[number % len(STYLES)] for number, _ in enumerate(rows)]


def _axes(lines: int, columns: int, *, width: float, height: float) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes: Any = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(9)
        axis.tick_params(labelsize=8)
    return figure, list(axes.flat)


def _log_steps(axis: Any, last: int) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xlim(1, last * 1.04)
    ticks = [2**i for i in range(last.bit_length()) if 2**i <= last]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.xaxis.label.set_fontsize(8)
    axis.yaxis.label.set_fontsize(8)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    _, tag, rest = buffer.getvalue().partition("<svg")
    return tag + rest
