"""``antibody worker``: a worker on this or another machine, for a server's queue."""

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError


def command(
    config: Annotated[Path | None, typer.Option(help="antibody.yaml, the same as the server's.")] = None,
    database: Annotated[str | None, typer.Option(help="The server's database.", metavar="URL")] = None,
    blobs: Annotated[str | None, typer.Option(help="The server's stored files.", metavar="URL")] = None,
    home: Annotated[Path | None, typer.Option(help="Folder of the embedded database, and for scratch.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A base model that is offered; repeatable.", metavar="NAME")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads that a job computes with.")] = None,
    executor: Annotated[
        str | None, typer.Option(help="Where jobs run: local, ray://auto or ray://HOST:PORT.", metavar="WHERE")
    ] = None,
    gpus: Annotated[float | None, typer.Option(help="GPUs of a job on a Ray cluster.")] = None,
) -> None:
    """Run the fine-tuning jobs of a server, one at a time, until SIGINT or SIGTERM."""
    try:
        from ..server.loading import load_settings
        from ..server.serve import offered
        from ..server.worker import work
    except ImportError as error:
        raise ConfigError(
            f"the server's packages are not installed ({error.name}). Install them: pip install 'antibody-llm[server]'"
        ) from None
    flags: dict[str, Any] = {"database": database, "blobs": blobs, "home": home}
    changes = {name: value for name, value in flags.items() if value is not None}
    if model:
        changes |= offered(model, configured=config is not None)
    settings = load_settings(config, **changes)
    wanted: dict[str, Any] = {"threads": threads, "executor": executor, "gpus": gpus}
    own = {name: value for name, value in wanted.items() if value is not None}
    settings = replace(settings, worker=replace(settings.worker, **own))
    if not settings.models:
        raise ConfigError("no model is offered, so no job could be run. Give the server's --config, or --model.")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    work(settings)
