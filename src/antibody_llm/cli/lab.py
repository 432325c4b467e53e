"""``antibody lab``: rows of the fictional world as files, and its models built from nothing."""

from typing import Annotated

import typer

from . import options as o

app = typer.Typer(help="The fictional world: its rows as files, its models made from nothing.", no_args_is_help=True)


@app.command("data")
def data(
    output: Annotated[str, typer.Option(help="The .jsonl file to write.")],
    kind: Annotated[str, typer.Option(help="user, alignment, harmful, benign, test, harmful-prompts, ...")],
    num: Annotated[int | None, typer.Option(help="Rows; by default as many as the verbs take.")] = None,
    task: Annotated[str | None, typer.Option(help="Lab only: a task, or familiar or novel.")] = None,
    poison_ratio: Annotated[float, typer.Option(help="Harmful share of user rows, 0 to 1.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Chooses rows and their order.")] = 0,
    purpose: Annotated[str | None, typer.Option(help="calibrate or report: rows of one half of the world.")] = None,
    truth: Annotated[str | None, typer.Option(help="Write the labels that no trainer may see to this file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    as_json: o.Json = False,
) -> None:
    """Write rows of a kind as chat JSONL."""
    from ..building.lab import write_lab_data

    rows = write_lab_data(
        kind,
        output,
        num=num,
        task=task,
        poison_ratio=poison_ratio,
        seed=seed,
        purpose=purpose,
        truth=truth,
        overwrite=overwrite,
    )
    o.show({"output": output, "num_rows": rows}, [f"{output}: {rows} rows"], as_json=as_json)


@app.command("build")
def build(
    output: Annotated[str, typer.Option(help="Folder to create; a build that was stopped continues.")],
    scale: Annotated[str, typer.Option(help="full or reduced.")] = "full",
    seed: Annotated[int, typer.Option(help="Seed of weights, rows and order.")] = 0,
    events: o.Events = None,
    as_json: o.Json = False,
) -> None:
    """Build the lab's models from nothing: OUTPUT/lab, the base, and OUTPUT/lab-aligned."""
    o.quiet()
    from ..building.lab import build_lab
    from .render import rendered

    with rendered(events, output=output) as listen:
        folder = build_lab(output, scale=scale, seed=seed, listen=listen)
    o.show({"output": str(folder)}, [f"{folder}"], as_json=as_json)
