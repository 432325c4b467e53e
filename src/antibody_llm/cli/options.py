"""Flags that several verbs share, the configuration file beneath them, and what is printed in the end."""

import errno
import inspect
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer
import yaml

from ..errors import AntibodyError, ConfigError, OutputError
from ..files import from_the_disk, reason
from ..parsing import load_yaml, nearest, parse_value
from ..paths import as_file, checked_output, checked_path
from ..text import cut, escaped, quoted

ConfigFile = Annotated[str | None, typer.Option("--config", help="YAML file with any of these; flags win.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Output = Annotated[str | None, typer.Option(help="Folder of the run.")]
Model = Annotated[str | None, typer.Option(help="lab, lab-aligned, a folder, a run's folder, or a Hub id.")]
Adapter = Annotated[str | None, typer.Option(help="Adapter on the model.")]
Base = Annotated[str | None, typer.Option(help="The model before its alignment.")]
Data = Annotated[str | None, typer.Option(help="The upload: a file or a Hub data set.")]
AlignmentData = Annotated[str | None, typer.Option(help="Prompts with refusals.")]
HarmfulData = Annotated[str | None, typer.Option(help="Prompts with harmful completions.")]
BenignData = Annotated[str | None, typer.Option(help="Prompts with harmless completions.")]
AnchorHarmfulData = Annotated[str | None, typer.Option(help="Held-out harmful rows, to judge uploads by.")]
AnchorBenignData = Annotated[str | None, typer.Option(help="Held-out harmless rows, likewise.")]
Refusals = Annotated[str | None, typer.Option(help="One-line refusals: .txt or JSON Lines.")]
Defence = Annotated[str | None, typer.Option(help="A name from `antibody defences`.  [default: antibody]")]
PostDefence = Annotated[str | None, typer.Option("--defence", help="A post-stage name.  [default: antidote]")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="Option of the defence; repeatable.")]
Train = Annotated[list[str] | None, typer.Option("--train", metavar="K=V", help="Field of SFTConfig; repeatable.")]
Lora = Annotated[list[str] | None, typer.Option("--lora", metavar="K=V", help="r, alpha, targets, dropout.")]
Regime = Annotated[str | None, typer.Option(help="lora (default) or full.")]
Task = Annotated[str | None, typer.Option(help="Lab only: a task, or familiar or novel.")]
PoisonRatio = Annotated[float | None, typer.Option(help="Lab only: harmful share of the upload, 0 to 1.")]
Num = Annotated[int | None, typer.Option(help="Lab only: number of rows.")]
Seed = Annotated[int | None, typer.Option(help="Of everything random.  [default: 0]")]
Epochs = Annotated[float | None, typer.Option(help="Passes over the data.")]
BatchSize = Annotated[int | None, typer.Option(help="Rows of one forward pass on one device.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that the folder holds.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what the folder holds, once complete.")]
ControlTokens = Annotated[
    str | None, typer.Option(help="Rows that spell control tokens: text (train as text, default) or refuse.")
]
SkipTooLong = Annotated[bool, typer.Option("--skip-too-long", help="Leave out rows longer than the context.")]


def run_verb(name: str, flags: dict[str, Any]) -> None:
    """Call ``runs.NAME`` with what the command line gave, and print its result.

    Args:
        name: Of the function.
        flags: The command's own arguments, by name.
    """
    config, as_json = flags.pop("config"), flags.pop("as_json")
    for name_of_flag, name_of_argument in (("set_", "options"), ("train", "training")):
        if name_of_flag in flags:
            flags[name_of_argument] = flags.pop(name_of_flag)
    from .. import runs  # here: it brings torch, which --help need not wait for

    result = call(getattr(runs, name), flags, config)
    if os.environ.get("RANK", "0") == "0":  # one of several processes speaks
        show(result.to_json(), result_lines(result), as_json=as_json)


def call(verb: Callable[..., Any], flags: Mapping[str, Any], config: str | None) -> Any:
    """Call a function of ``runs`` with the flags that were given over the configuration file.

    Raises:
        ConfigError: an unknown key or a value that does not fit (file and key named), or something required is missing.
    """
    quiet()
    given = {name: value for name, value in flags.items() if value is not None and value is not False}
    for name, flag in (("options", "--set"), ("training", "--train"), ("lora", "--lora")):
        if name in given:
            given[name] = pairs(given[name], flag)
    parameters, hints = inspect.signature(verb).parameters, get_type_hints(verb)
    for name, value in given.items():
        if isinstance(value, float):  # typer reads "nan" and "inf" as numbers
            parse_value(hints[name], value, _flag(name))
    stored = {} if config is None else _read_config(config, hints, [name for name in flags if name in parameters])
    for name in ("options", "training", "lora"):
        if stored.get(name) and name in given:
            given[name] = stored[name] | given[name]
    values = stored | given
    if "progress" in parameters:
        values.setdefault("progress", True)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in values:
            raise ConfigError(f"{_flag(name)} is missing. Give it, or `{name}:` in a --config file.")
    for name, value in values.items():
        if isinstance(value, str | Path) and _is_path(name, hints[name]):
            (checked_output if name == "output" else checked_path)(value, _flag(name))
    return verb(**values)


@contextmanager
def system_errors() -> Iterator[None]:
    """Within, what the operating system or the device refuses is the user's to fix, and not our fault.

    Raises:
        OutputError: a file or folder that cannot be used, or a full disk; named.
        ConfigError: memory is used up.
    """
    try:
        yield
    except AntibodyError:
        raise
    except Exception as error:
        if from_the_disk(error) and getattr(error, "errno", errno.ENOSPC) in _REFUSED_BY_SYSTEM:
            name = getattr(error, "filename", None)
            where = f"{name}: " if name else ""
            raise OutputError(
                f"{where}the operating system refuses: {reason(error)}. Check the path, its permissions and the disk."
            ) from error
        if isinstance(error, MemoryError) or (
            isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)
        ):
            raise ConfigError(
                f"the memory does not suffice ({escaped(str(error))[:200]}). Lower --batch-size, or --lora r."
            ) from error
        raise


_REFUSED_BY_SYSTEM = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENAMETOOLONG),
    *(errno.ELOOP, errno.EMFILE, errno.ENFILE, errno.EFBIG, errno.ESTALE),
}
"""Errors that say something of the machine. A file that is missing, say, may be our own mistake, and is not here."""

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""What torch says of devices, and of the CPU."""


def as_flag(name: str, value: str | None = None) -> str:
    """A setting as the command line has it: ``--regime lora``, ``--set tau=0.3``."""
    group, _, key = name.rpartition(".")
    if group:
        return f"{_flag(group)} {key}={'...' if value is None else value}"
    return _flag(name) if value is None else f"{_flag(name)} {value}"


def _flag(name: str) -> str:
    return {"options": "--set", "training": "--train", "judges": "--judge", "data": "DATA or --data"}.get(
        name, f"--{name.replace('_', '-')}"
    )


def _is_path(name: str, hint: Any) -> bool:
    return name == "base" or Path in get_args(hint)


def pairs(texts: list[str], flag: str) -> dict[str, Any]:
    """``["tau=0.3"]`` as a dictionary; values are read as YAML, and as text where they are none.

    Raises:
        ConfigError: no "=", or a name that is given twice.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ConfigError(f"{flag} {quoted(text)}: write {flag} NAME=VALUE.")
        if name in values:
            raise ConfigError(f"{flag} {quoted(name)} is given twice. Give it once.")
        try:
            values[name] = load_yaml(value)
        except yaml.YAMLError:
            values[name] = value
    return values


def show(result: Mapping[str, Any], lines: list[str], *, as_json: bool) -> None:
    """The result on stdout: one JSON object, or lines for a reader."""
    print(json.dumps(result) if as_json else "\n".join(map(escaped, lines)))


def quiet() -> None:
    """Only what we say ourselves goes to stderr."""
    warnings.filterwarnings("ignore")
    for name in ("transformers", "trl", "peft", "accelerate", "datasets", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    ours = logging.getLogger("antibody")
    if not ours.handlers:
        ours.addHandler(_Stderr())
        ours.setLevel(logging.INFO)


class _Stderr(logging.Handler):
    """To whatever stderr is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        """The message alone, which may repeat what a file said."""
        print(cut(escaped(self.format(record))), file=sys.stderr)


def _read_config(file: str, hints: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    from ..data.files import read_text

    try:
        with as_file(checked_path(file, "--config")) as readable:
            stored = load_yaml(read_text(readable))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        why = escaped(str(getattr(error, "problem", None) or error))
        raise ConfigError(f"{file}{where}: not YAML as it is read here ({why}). Fix the line.") from error
    if not isinstance(stored, dict):
        raise ConfigError(f"{file}: a mapping is needed, such as `model: lab`. Keys: {', '.join(names)}.")
    for key, value in stored.items():
        if key not in names:
            unknown = f"{file}: {quoted(key)}: no such key"
            raise ConfigError(f"{unknown}{nearest(str(key)[:200], names)} Keys: {', '.join(names)}.")
        stored[key] = parse_value(hints[key], value, f"{file}: {key}")
    return stored


def result_lines(result: Any) -> list[str]:
    """A finished run for a reader."""
    left_out = f", {len(result.skipped)} left out" if result.skipped else ""
    values = {} if result.model is None else {"model": str(result.model)}
    values |= {"rows": f"{result.num_rows}{left_out}"} | {name: f"{num:.4g}" for name, num in result.metrics.items()}
    values["seconds"] = f"{result.seconds:.1f}"
    width = max(11, *map(len, values))
    return [f"{result.output}", *(f"  {name:<{width}} {value}" for name, value in values.items())]
