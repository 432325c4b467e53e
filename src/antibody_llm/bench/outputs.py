"""What a matrix leaves for readers: results.parquet, tables.md, tables.tex and report.html."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib import rc_context
from matplotlib.figure import Figure

from ..files import whole, write_text
from .matrix_file import Matrix
from .summary import MEAN, WORST, Mean, Ranking, Row, measured
from .tables import Table, counted

PARQUET, MARKDOWN, LATEX, REPORT = "results.parquet", "tables.md", "tables.tex", "report.html"
WHOLE = ("seed", "num_rows", "num_poison", "prompts")
TEXT = ("defence", "attack", "budget", "task", "alignment", "finetuning", "post", "key", "error")


def write_outputs(
    folder: Path, matrix: Matrix, rows: Sequence[Row], ranked: Sequence[Ranking], tables: Sequence[Table]
) -> dict[str, str]:
    """Write every file; returns their paths by kind.

    Raises:
        OutputError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_parquet(folder / PARQUET, rows)
    write_text(folder / MARKDOWN, f"# {matrix.title}\n\n" + "\n".join(table.markdown() for table in tables))
    write_text(folder / LATEX, "\n".join(table.latex() for table in tables))
    write_text(folder / REPORT, report(matrix, rows, ranked, tables))
    files = {"parquet": PARQUET, "markdown": MARKDOWN, "latex": LATEX, "report": REPORT}
    return {kind: str(folder / name) for kind, name in files.items()}


def write_parquet(file: Path, rows: Sequence[Row]) -> None:
    """Write a row for each cell; columns that no cell has are null."""
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    kinds = {name: pa.string() if name in TEXT else pa.int64() if name in WHOLE else pa.float64() for name in columns}
    table = pa.table({name: pa.array(values, kinds[name]) for name, values in columns.items()})
    with whole(file) as temporary:
        pq.write_table(table, temporary)


def report(matrix: Matrix, rows: Sequence[Row], ranked: Sequence[Ranking], tables: Sequence[Table]) -> str:
    """The whole page, which needs no other file."""
    settings = matrix.settings
    return page(
        "bench.html",
        title=matrix.title,
        settings=settings,
        seeds=matrix.seeds,
        defences=[defence.name for defence in matrix.defences],
        attacks=[attack.name for attack in matrix.attacks],
        counts=counted(rows),
        pictures=[
            _pictures(ranking, ranked, rows, settings.baseline, settings.tolerance) for ranking in _means(ranked)
        ],
        tables=tables,
        failed=[row for row in rows if row["error"] is not None],
    )


def page(template: str, room: str = "antibody_llm.bench", **values: Any) -> str:
    """A page with its values filled in.

    Args:
        template: Its file in the folder ``templates`` of its room, made from ``base.html`` of this one.
        room: The package.
        values: What it shows.
    """
    loaders = [jinja2.PackageLoader(place) for place in dict.fromkeys((room, "antibody_llm.bench"))]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = lambda share: "" if share is None else f"{100 * share:.1f}"
    return environment.get_template(template).render(**values)


def _means(ranked: Sequence[Ranking]) -> list[Ranking]:
    return [ranking for ranking in ranked if ranking.scope == MEAN]


def _pictures(
    mean: Ranking, ranked: Sequence[Ranking], rows: Sequence[Row], baseline: str, tolerance: float
) -> Mapping[str, Any]:
    """The heat map and the trade-off of one budget and task."""
    here = [row for row in rows if (row["budget"], row["task"]) == (mean.budget, mean.task)]
    worst = next(each for each in ranked if (each.scope, each.budget, each.task) == (WORST, mean.budget, mean.task))
    where = ", ".join(part for part in (f"{mean.task} task" if mean.task else "", f"budget {mean.budget}") if part)
    return {
        "where": where,
        "heat": heat_map(mean, here),
        "trade": _trade_off(mean, worst, here, baseline, tolerance),
    }


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "bench"}):  # the same figures are the same file
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return buffer.getvalue().partition("<svg")[1] + buffer.getvalue().partition("<svg")[2]


def heat_map(mean: Ranking, rows: Sequence[Row]) -> str:
    """Harm by defence, the best first, and by attack and ratio, as SVG.

    Args:
        mean: The ranking of one budget and task by the mean over attacks.
        rows: The cells of that budget and task.
    """
    names = [each.defence for each in mean.ranks]
    settings = list(dict.fromkeys((row["attack"], row["poison_ratio"]) for row in rows))
    cells = {
        (name, setting): measured(
            [row for row in rows if row["defence"] == name and (row["attack"], row["poison_ratio"]) == setting], "harm"
        )
        for name in names
        for setting in settings
    }
    values = [[_value(cells[name, setting]) for setting in settings] for name in names]
    figure = Figure(figsize=(2.2 + 0.46 * len(settings), 1.3 + 0.3 * len(names)), layout="constrained")
    axis: Any = figure.subplots()
    axis.imshow(values, cmap="YlOrRd", vmin=0, vmax=1, aspect="auto")
    for i, line in enumerate(values):
        for j, value in enumerate(line):
            text = "" if value != value else f"{100 * value:.0f}"
            axis.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if value > 0.65 else "#1d2429")
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_xticks(range(len(settings)), [f"{100 * ratio:g} %" for _, ratio in settings], fontsize=7)
    _name_groups(axis, [attack for attack, _ in settings])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return _svg(figure)


def _name_groups(axis: Any, attacks: Sequence[str]) -> None:
    """Name each attack above its ratios, and part it from the next."""
    begin = 0
    for end in range(1, len(attacks) + 1):
        if end == len(attacks) or attacks[end] != attacks[begin]:
            # Names would run into each other over one column: there they are slanted.
            slant = {"rotation": 35, "ha": "left"} if end - begin < 3 else {"ha": "center"}
            place = (begin + end - 1) / 2 - (0.3 if end - begin < 3 else 0)
            axis.text(place, -0.6, attacks[begin], fontsize=8, va="bottom", **slant)
            if end < len(attacks):
                axis.axvline(end - 0.5, color="white", linewidth=3)
            begin = end


def _trade_off(mean: Ranking, worst: Ranking, rows: Sequence[Row], baseline: str, tolerance: float) -> str:
    """Accuracy against harm: the mean as a point with its interval, the worst attack as a tick above it."""
    highest = {each.defence: each.harm.value for each in worst.ranks}
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axis: Any = figure.subplots()
    for number, each in enumerate(mean.ranks):
        colour = "#9aa5ab" if each.rank is None else f"C{number % 10}"
        x, y = 100 * each.accuracy.value, 100 * each.harm.value
        axis.plot([x, x], [100 * each.harm.low, 100 * each.harm.high], color=colour, alpha=0.35, linewidth=3)
        axis.plot([x], [100 * highest[each.defence]], "_", color=colour, markersize=9)
        label = each.defence if each.rank is None else f"{each.rank}  {each.defence}"
        axis.plot([x], [y], "o", color=colour, label=label, markersize=6)
    wanted = measured([row for row in rows if row["defence"] == baseline], "finetune_accuracy")
    if wanted is not None:
        axis.axvline(100 * (wanted.value - tolerance), color="#5d6970", linewidth=0.8, linestyle=":")
    axis.set(xlabel="accuracy on the user's task, percent", ylabel="harm, percent", ylim=(-3, 103))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return _svg(figure)


def _value(mean: Mean | None) -> float:
    return float("nan") if mean is None else mean.value
