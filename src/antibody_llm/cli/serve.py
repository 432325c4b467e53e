"""``antibody serve``: the OpenAI fine-tuning API on your own models."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError
from . import options as o


def command(
    config: Annotated[Path | None, typer.Option(help="antibody.yaml; see docs/serving.md.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="A base model to offer; repeatable.", metavar="NAME")] = None,
    home: Annotated[Path | None, typer.Option(help="Folder of the database, the files and scratch.")] = None,
    database: Annotated[str | None, typer.Option(help="The database; without it SQLite.", metavar="URL")] = None,
    blobs: Annotated[str | None, typer.Option(help="Stored files; without it a folder.", metavar="URL")] = None,
    workers: Annotated[int | None, typer.Option(help="Workers to start on this machine; 0: none.")] = None,
    executor: Annotated[
        str | None, typer.Option(help="Where jobs run: local, ray://auto or ray://HOST:PORT.", metavar="WHERE")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Check the settings and end.")] = False,
    as_json: o.Json = False,
) -> None:
    """Serve the OpenAI fine-tuning API: upload, screen, fine-tune under a defence, gate, and ask the result."""
    try:
        from ..server.loading import load_settings
        from ..server.serve import offered, problems, serve
    except ImportError as error:
        raise ConfigError(
            f"the server's packages are not installed ({error.name}). Install them: pip install 'antibody-llm[server]'"
        ) from None
    flags: dict[str, Any] = {"home": home, "database": database, "blobs": blobs, "host": host, "port": port}
    changes = {name: value for name, value in flags.items() if value is not None}
    if model:
        changes |= offered(model, configured=config is not None)
    settings = load_settings(config, **changes)
    wanted: dict[str, Any] = {"count": workers, "executor": executor}
    own = {name: value for name, value in wanted.items() if value is not None}
    settings = replace(settings, worker=replace(settings.worker, **own))
    if check:
        found = problems(settings)
        if found:
            raise ConfigError(" ".join(found))
        shown = asdict(settings) | {"database": "set" if settings.database else "", "home": str(settings.home)}
        o.show(
            shown, [f"{config or 'the settings'}: fine", f"  models      {_names(settings.models)}"], as_json=as_json
        )
        return
    serve(settings, lambda line: print(line, file=sys.stderr, flush=True))


def _names(models: Any) -> str:
    return ", ".join(model.name for model in models)
