"""``antibody``: the verbs, and what becomes of their errors.

Exit code 0: done. 2: the user can mend it; one message on stderr, no traceback. 1: our fault.
"""

import json
import os
import sys
import traceback
from collections.abc import Sequence

import typer

from ..errors import AntibodyError
from ..text import cut, escaped
from . import align, convert, defences, demo, evaluate, finetune, lab, repair, screen

UsageProblem: type[Exception] = typer.BadParameter.__mro__[2]
"""ClickException, of whichever click this typer carries: 0.2x has its own."""

app = typer.Typer(
    name="antibody",
    help="Safe fine-tuning as a service: align, fine-tune under attack, measure.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("align")(align.command)
app.command("finetune")(finetune.command)
app.command("repair")(repair.command)
app.command("screen")(screen.command)
app.command("convert")(convert.command)
app.command("evaluate")(evaluate.command)
app.command("defences")(defences.command)
app.command("demo")(demo.command)
app.add_typer(lab.app, name="lab")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb and end the process."""
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: list[str]) -> int:
    """Run one verb and give the exit code."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    as_json = "--json" in arguments
    try:
        code = app(arguments, prog_name="antibody", standalone_mode=False)
    except AntibodyError as error:
        return _refuse(f"{type(error).__name__}: {error}", as_json)
    except UsageProblem as error:
        told: str = error.format_message()  # type: ignore[attr-defined]
        return _refuse(f"UsageError: {told.rstrip('.')}. See antibody --help.", as_json)
    except (typer.Abort, KeyboardInterrupt):
        print("stopped; the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    except Exception as error:
        print("\n".join(map(escaped, traceback.format_exc().splitlines())), file=sys.stderr)
        print("This is our fault, not yours: please report it with the lines above.", file=sys.stderr)
        if as_json:
            print(json.dumps({"error": {"type": type(error).__name__, "message": str(error), "ours": True}}))
        return 1
    return int(code or 0)


def _refuse(message: str, as_json: bool) -> int:
    message = cut(escaped(message))
    print(message, file=sys.stderr)
    if as_json:
        kind, _, told = message.partition(": ")
        print(json.dumps({"error": {"type": kind, "message": told, "ours": False}}))
    return 2


if __name__ == "__main__":
    main()
