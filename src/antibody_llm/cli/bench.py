"""``antibody bench``: a matrix of defences and attacks, carried out, ranked and reported."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from ..mentions import setting
from ..paths import checked_output
from . import options as o

if TYPE_CHECKING:
    from ..bench.matrix_file import Matrix
    from ..bench.plan import Plan
    from ..bench.run import MakePool
    from ..bench.tables import Table

WIDTH = 120
"""Columns that a ranking needs; a narrower terminal wraps it."""


def command(
    matrix: Annotated[str, typer.Argument(metavar="MATRIX", help="A YAML file, or a preset such as lab-core.")],
    output: Annotated[
        str | None,
        typer.Option(help="Folder for every result; a run that was stopped goes on.  [default: runs/MATRIX]"),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes.  [default: as many as the cores have room for]")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS|auto", help="Run cells on this Ray cluster; OUTPUT is seen by all.")
    ] = None,
    attacker_search: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Instead of the cells, search for the worst attack on each defence in N trials."
        ),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only list what would be run, with its cost.")] = False,
    events: o.Events = None,
    as_json: o.Json = False,
) -> None:
    """Try every defence against every attack, and rank them."""
    if ray is not None and jobs is not None:
        raise ConfigError(
            f"{setting('jobs')} is for this machine, and {setting('ray')} for a cluster. Give one of them.",
            field="jobs",
        )
    o.quiet()
    from ..bench.matrix_file import read_matrix
    from ..bench.plan import make_plan

    folder = checked_output(output or f"runs/{Path(matrix).stem}").absolute()
    if attacker_search is not None:
        if plan:
            raise ConfigError(
                f"a search draws its cells as it goes on: {setting('plan')} cannot list them. Leave it out.",
                field="plan",
            )
        code = _search(read_matrix(matrix), folder, attacker_search, jobs, ray, events, as_json=as_json)
        raise typer.Exit(code)
    planned = make_plan(read_matrix(matrix))
    if plan:
        _show_plan(planned, folder, as_json=as_json)
    else:
        code = _run(planned, folder, _pool(planned.matrix, jobs, ray), events, as_json=as_json)
        raise typer.Exit(code)


def _pool(matrix: "Matrix", jobs: int | None, ray: str | None) -> "MakePool":
    from ..bench.pools.local import num_cores
    from ..bench.run import local

    settings = matrix.settings
    if ray is None:
        return local(jobs or max(1, num_cores() // settings.threads))
    from ..bench.pools.ray import on_ray

    return on_ray(ray, threads=settings.threads, gpus=settings.gpus)


def _show_plan(planned: "Plan", folder: Path, *, as_json: bool) -> None:
    from ..bench.run import estimate

    found = estimate(planned, folder)
    cells = [
        {
            "defence": cell.defence,
            "attack": cell.attack,
            "poison_ratio": cell.poison_ratio,
            "budget": cell.budget,
            "task": cell.task,
            "seed": cell.seed,
            "key": cell.job.key,
        }
        for cell in planned.cells
    ]
    alignments = [{"label": job.label, "key": job.key} for job in planned.jobs if job.kind == "alignment"]
    cost = "unknown: nothing like it has been timed in this folder"
    if found.cpu_seconds is not None:
        cost = f"about {_duration(found.cpu_seconds)} of processor time"
    lines = [
        f"{planned.matrix.title}",
        f"  cells       {found.cells}, {found.cells_left} of them to run",
        f"  alignments  {found.alignments}, {found.alignments_left} of them to run",
        f"  cost        {cost}",
        f"  results     {folder}",
        "",
    ]
    lines += [f"  {each['label']}" for each in alignments]
    lines += [
        f"  {cell.job.label}" + (f", {cell.budget}" if cell.budget != "default" else "") for cell in planned.cells
    ]
    told = {"cells_left": found.cells_left, "alignments_left": found.alignments_left, "cpu_seconds": found.cpu_seconds}
    o.show({"output": str(folder), "cells": cells, "alignments": alignments, **told}, lines, as_json=as_json)


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.0f} minutes"


def _run(planned: "Plan", folder: Path, make_pool: "MakePool", events: str | None, *, as_json: bool) -> int:
    from ..bench.outputs import write_outputs
    from ..bench.run import failures, run_plan
    from ..bench.summary import rankings, rows_of
    from ..bench.tables import flat, tables
    from .render import rendered

    settings = planned.matrix.settings
    with rendered(events, output=folder, log=True) as listen:
        found = run_plan(planned, folder, make_pool=make_pool, listen=listen)
    rows = rows_of(planned, found)
    ranked = rankings(rows, baseline=settings.baseline, tolerance=settings.tolerance)
    made = tables(rows, ranked, planned.matrix.published, baseline=settings.baseline)
    files = write_outputs(folder, planned.matrix, rows, ranked, made)
    failed = failures(found, planned.jobs)
    if as_json:
        o.show(
            {"output": str(folder), "files": files, "failed": failed, "ranking": flat(ranked), "rows": rows},
            [],
            as_json=True,
        )
    else:
        _print(made, failed, files)
    return 1 if failed else 0


def _search(
    matrix: "Matrix",
    folder: Path,
    budget: int,
    jobs: int | None,
    ray: str | None,
    events: str | None,
    *,
    as_json: bool,
) -> int:
    from ..bench.attacker.outputs import write_worst_case
    from ..bench.attacker.search import run_search
    from ..bench.attacker.tables import worst_case_tables
    from ..bench.attacker.worst_case import worst_case
    from .render import rendered

    with rendered(events, output=folder, log=True) as listen:
        found = run_search(matrix, folder, budget, make_pool=_pool(matrix, jobs, ray), listen=listen)
    worst = worst_case(found)
    made = worst_case_tables(worst)
    files = write_worst_case(folder, worst, made)
    if as_json:
        o.show({"output": str(folder), "files": files, **worst}, [], as_json=True)
    else:
        _print(made, found.failed, files)
    return 1 if found.failed else 0


def _print(made: "list[Table]", failed: list[str], files: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table as Shown
    from rich.text import Text

    console: Any = Console()
    console.width = max(console.width, WIDTH)
    for table in made:
        console.print(Text(f"\n{table.title}", style="bold"))
        shown = Shown(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
        for number, name in enumerate(table.columns):
            shown.add_column(name, justify="right" if number else "left", no_wrap=True)
        for line in table.lines:
            shown.add_row(*(Text(value) for value in line))
        console.print(shown)
        console.print(Text(table.note, style="dim"), width=min(console.width, WIDTH))
    for failure in failed:
        console.print(Text(f"failed: {failure}", style="red"), soft_wrap=True)
    console.print(
        f"\nOpen {next(files[kind] for kind in ('report', 'markdown') if kind in files)}",
        highlight=False,
        soft_wrap=True,
    )
