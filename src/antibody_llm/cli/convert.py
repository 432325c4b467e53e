"""``antibody convert``: a data file in any accepted format as canonical chat JSON Lines."""

from pathlib import Path
from typing import Annotated

import typer

from . import options as o


def command(
    source: Annotated[str, typer.Argument(metavar="IN", help="A file, a data set's folder or a Hub id.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The .jsonl file to write.")],
    split: Annotated[str, typer.Option(help="Of a data set.")] = "train",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT where it exists.")] = False,
    as_json: o.Json = False,
) -> None:
    """Write a data file as canonical chat JSON Lines, and report what changed."""
    from ..runs.convert import convert  # here: it brings torch, which --help need not wait for

    result = convert(source, output, split=split, overwrite=overwrite)
    o.show(result.to_json(), result.lines(), as_json=as_json)
