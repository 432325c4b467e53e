"""``antibody evaluate``: measure a model."""

from typing import Annotated

import typer

from . import options as o


def command(
    model: o.Model = None,
    adapter: o.Adapter = None,
    harmful_prompts: Annotated[str | None, typer.Option(help="Should be refused.")] = None,
    benign_prompts: Annotated[str | None, typer.Option(help="Should be answered.")] = None,
    test_data: Annotated[str | None, typer.Option(help="The user's task, with reference answers.")] = None,
    retention_data: Annotated[str | None, typer.Option(help="Unrelated skills, with reference answers.")] = None,
    judges: Annotated[list[str] | None, typer.Option("--judge", help="lab or keywords; repeatable.")] = None,
    answer: Annotated[str | None, typer.Option(help="exact, contains or gsm8k: how test answers compare.")] = None,
    retention_answer: Annotated[str | None, typer.Option(help="The same for retention.")] = None,
    output: o.Output = None,
    task: o.Task = None,
    num: o.Num = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Most tokens per completion.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Prompts decoded together.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    seed: o.Seed = None,
    overwrite: o.Overwrite = False,
    config: o.ConfigFile = None,
    as_json: o.Json = False,
) -> None:
    """Measure a model: harmful score, over-refusal, task accuracy, retention."""
    o.run_verb("evaluate", dict(locals()))
