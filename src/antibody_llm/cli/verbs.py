"""The verbs, made from their settings: a field is a flag, and its docstring's first sentence is the flag's help."""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from ..mentions import Spell
from ..settings import SETTINGS, SettingField, fields_of, make_settings
from . import anchors, calibrate, screen
from .options import ConfigFile, Events, Json, as_flag, given_values, print_lines, quiet, result_lines, show

POSITIONAL: Mapping[str, Mapping[str, str]] = {
    "screen": {"data": "DATA"},
    "convert": {"source": "IN", "output": "OUT"},
    "bench": {"matrix": "MATRIX"},
    "audit": {"run": "RUN"},
}
"""The fields of a verb that are written without a flag, and their names on the command line."""

PRINTED: Mapping[str, Callable[[Any], None]] = {
    "anchors": lambda result: print_lines(anchors.lines(result)),
    "convert": lambda result: print_lines(result.lines()),
    "calibrate": lambda result: print_lines(calibrate.lines(result)),
    **dict.fromkeys(
        ("prepare", "teach", "study", "immunization", "audit", "train"), lambda result: print_lines(result.lines())
    ),
    "screen": screen.print_result,
}
"""The function that shows a verb's result to a reader, if it is not a run's."""


IN_JOBS = ("calibrate", "immunization", "train")
"""Verbs whose progress is in jobs, of which a log has a line each; that of the others is in steps and rows."""


def command(verb: str, settings: type | None = None, *, room: str = "runs") -> Callable[..., None]:
    """Make the command of a verb, for typer.

    Args:
        verb: The name of a function.
        settings: The verb's dataclass; by default that of ``SETTINGS``.
        room: The room, or the module of one, that has the function.
    """
    settings = settings or SETTINGS[verb]

    def run(**flags: Any) -> None:
        config, as_json, events = flags.pop("config"), flags.pop("as_json"), flags.pop("events")
        made: Any = make_settings(settings, given_values(settings, flags, config))
        quiet()
        # Here: it brings torch, which --help and an error in a flag need not wait for.
        functions = import_module(f"..{room}", __package__)
        from .render import rendered

        with rendered(events, output=made.output, spell=spelling([verb]), log=verb in IN_JOBS) as listen:
            result = getattr(functions, verb).with_settings(made, listen=listen)
        if os.environ.get("RANK", "0") != "0":
            return  # only one of several processes prints
        if as_json:
            show(result.to_json(), [], as_json=True)
        else:
            PRINTED.get(verb, lambda result: print_lines(result_lines(result)))(result)

    parameters = [_parameter(field, POSITIONAL.get(verb, {}).get(field.name)) for field in fields_of(settings)]
    shared = {"config": (ConfigFile, None), "events": (Events, None), "as_json": (Json, False)}
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
        for name, (hint, default) in shared.items()
    ]
    made: Any = run
    made.__signature__ = inspect.Signature(parameters)
    made.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    made.__doc__ = inspect.getdoc(settings)
    return run


def spelling(arguments: Sequence[str]) -> Spell:
    """The spelling of a setting on this command line."""
    positional = POSITIONAL.get(next((word for word in arguments if not word.startswith("-")), ""), {})
    return lambda name, value: positional.get(name) or as_flag(name, value)


def _parameter(field: SettingField, positional: str | None) -> inspect.Parameter:
    """A field as typer reads it. None and False mean that the flag is not given; the configuration file may give it."""
    kind: Any = next((kind for kind in (bool, int, float) if field.kinds == {kind}), str)
    metavar, repeatable = None, field.is_mapping or field.kinds == {Sequence}
    if repeatable:
        kind, metavar = list[str], "K=V" if field.is_mapping else "NAME"
    if field.choices:
        metavar = "|".join(field.choices)
    help = field.help.removesuffix(".") + "; repeatable." if repeatable else field.help
    if not field.required and field.default is not None and field.default is not False:
        help += f"  [default: {field.default}]"
    option = (
        typer.Argument(metavar=positional, help=help)
        if positional
        else typer.Option(as_flag(field.name), metavar=metavar, help=help)
    )
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=False if kind is bool else None,
        annotation=Annotated[kind if kind is bool else kind | None, option],
    )
