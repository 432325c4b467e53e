"""``antibody demo``: the main job on the embedded lab, in a few minutes."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..paths import checked_output
from . import options as o


def command(
    output: Annotated[str, typer.Option(help="Folder for every run, results.json and report.html.")] = "runs/demo",
    quick: Annotated[bool, typer.Option("--quick", help="One seed and the headline cells only.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes.  [default: one per core]")] = None,
    events: o.Events = None,
    as_json: o.Json = False,
) -> None:
    """See undefended fine-tuning lose its safety to 20 % harmful rows, and Antibody keep it."""
    folder = checked_output(output).absolute()
    o.quiet()
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from ..bench.demo import demo
    from ..bench.demo_report import checks, grouped, write_report
    from ..events import Progress as Done
    from .render import written

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    shown = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with written(events, folder) as write, shown as bar:
        task = bar.add_task("aligning the lab's model", total=None)

        def advance(what: str, done: int, total: int) -> None:
            write(Done(what=what, done=done, total=total))
            bar.update(task, description=what, completed=done, total=total)
            if not console.is_terminal:
                console.print(f"[{done}/{total}] {what}", highlight=False)

        results = demo(output=folder, quick=quick, jobs=jobs, progress=advance)
    report = write_report(folder, results)
    if as_json:
        o.show(results, [], as_json=True)
    else:
        _print(Console(), grouped(results["rows"]), checks(results["rows"]), results["seconds"], report)


def _print(console: Any, groups: dict[str, list[Any]], promises: list[Any], seconds: float, report: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    console.print("Percentages. Each row is a model that was trained in this run.")
    for heading, rows in groups.items():
        console.print(Text(f"\n{heading}", style="bold"))
        table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
        for name in ("alignment", "tuning", "task"):
            table.add_column(name)
        for name in ("poison", "epochs", "seed", "harmful", "acc.", "over-ref.", "incoher."):
            table.add_column(name, justify="right")
        for row in rows:
            shares = (row[key] for key in ("harmful_score", "finetune_accuracy", "over_refusal", "incoherent"))
            table.add_row(
                row["alignment"],
                row["finetuning"],
                "novel" if row["novel"] else "familiar",
                f"{100 * row['poison_ratio']:.0f}",
                str(row["epochs"]),
                str(row["seed"]),
                *(f"{100 * share:.1f}" for share in shares),
            )
        console.print(table)
    console.print()
    for check in promises:
        mark = Text("holds          ", style="green") if check.holds else Text("does not hold  ", style="red")
        console.print(mark + Text(f"{check.value:6.3f}  {check.what} ({check.limit})"), soft_wrap=True)
    console.print(f"\n{seconds:.0f} seconds. Open {report}", highlight=False, soft_wrap=True)
