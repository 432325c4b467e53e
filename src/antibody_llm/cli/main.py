"""``antibody``: the verbs, and the handling of their errors.

Exit code 0: done. 2: an error that the user can fix, with one message on stderr and no traceback. 1: a fault of this
library. 130 and 143: stopped by SIGINT (Ctrl-C) or SIGTERM.
"""

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from .. import __version__
from ..errors import AntibodyError
from ..settings import SETTINGS
from ..settings.calibrate import CalibrateSettings
from ..settings.immunization import ImmunizationSettings
from ..text import cut, escaped
from . import attacks, audit, bench, defences, demo, lab, real, serve, worker
from .options import system_errors
from .verbs import command, spelling

UsageProblem: type[Exception] = typer.BadParameter.__mro__[2]
"""ClickException of the click that this typer uses: 0.2x has its own."""

app = typer.Typer(
    name="antibody",
    help="Safe fine-tuning as a service: align, fine-tune under attack, measure.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _before_the_verb(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


for _verb in SETTINGS:
    app.command(_verb)(command(_verb))
app.command("defences")(defences.command)
app.command("attacks")(attacks.list_command)
app.command("attack")(attacks.command)
app.command("demo")(demo.command)
app.command("bench")(bench.command)
app.command("calibrate")(command("calibrate", CalibrateSettings, room="calibration"))
app.command("immunization")(command("immunization", ImmunizationSettings, room="immunization.verb"))
app.command("serve")(serve.command)
app.command("worker")(worker.command)
app.add_typer(audit.app, name="audit")
app.add_typer(lab.app, name="lab")
app.add_typer(real.app, name="real")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb and end the process."""
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: list[str]) -> int:
    """Run one verb and give the exit code."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    as_json = "--json" in arguments
    try:
        with _signals(), system_errors():
            code = app(arguments, prog_name="antibody", standalone_mode=False)
    except _Stopped as stop:
        return _stopped(stop.number)
    except (typer.Abort, KeyboardInterrupt):
        return _stopped(signal.SIGINT)
    except AntibodyError as error:
        return _refuse(f"{_kind(error)}: {error.spelled(spelling(arguments))}", as_json)
    except UsageProblem as error:
        context: Any = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":  # no verb was named: the help lists them
            print(context.get_help(), file=sys.stderr)
            return 2
        problem: str = error.format_message()  # type: ignore[attr-defined]
        usage = "Usage: antibody COMMAND" if context is None else context.get_usage().rstrip(".")
        see = "antibody" if context is None else context.command_path
        return _refuse(f"UsageError: {problem.rstrip('.')}. {usage}. See {see} --help.", as_json)
    except Exception as error:
        print("\n".join(map(escaped, traceback.format_exc().splitlines())), file=sys.stderr)
        print("This is a fault of antibody, not yours: please report it with the lines above.", file=sys.stderr)
        if as_json:
            print(json.dumps({"error": {"type": type(error).__name__, "message": str(error), "ours": True}}))
        return 1
    return int(code or 0)


def _kind(error: AntibodyError) -> str:
    """The name of the error's class in ``errors.py``, since rooms have subclasses."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == AntibodyError.__module__)


class _Stopped(BaseException):
    """Raised if a signal asks this process to end. Not a KeyboardInterrupt, which typer turns into a silent exit."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def _signals() -> Iterator[None]:
    """Let the first SIGINT or SIGTERM inside end the verb in good order, and the second one the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, and only it is interrupted
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        raise _Stopped(number)

    try:
        for number in numbers:
            if before[number] is not signal.SIG_IGN:  # as under nohup, or in the background of a script
                signal.signal(number, stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stopped(number: int) -> int:
    name = signal.Signals(number).name
    print(
        f"stopped by {name}. Run the same command again: it continues from its last checkpoint, or from the start if "
        "there is none.",
        file=sys.stderr,
    )
    return 128 + number


def _refuse(message: str, as_json: bool) -> int:
    message = cut(escaped(message))
    print(message, file=sys.stderr)
    if as_json:
        kind, _, text = message.partition(": ")
        print(json.dumps({"error": {"type": kind, "message": text, "ours": False}}))
    return 2


if __name__ == "__main__":
    main()
