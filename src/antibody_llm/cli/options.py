"""The parts that every verb shares: the configuration file beneath its flags, its errors, and its printed result."""

import errno
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer
import yaml

from ..errors import AntibodyError, ConfigError, OutputError
from ..files import from_the_disk, reason
from ..mentions import setting
from ..parsing import load_yaml, yaml_fault
from ..paths import as_file, checked_path
from ..settings import fields_of, missing, parse_values
from ..text import escaped, quoted

ConfigFile = Annotated[str | None, typer.Option("--config", help="YAML file with any of these; flags win.")]
Events = Annotated[str | None, typer.Option("--events", help="Append what happens to this file, as JSON Lines.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def given_values(settings: type, flags: Mapping[str, Any], config: str | None) -> dict[str, Any]:
    """The values of a verb's settings that the command line gave, over those of the configuration file.

    Args:
        settings: The verb's dataclass.
        flags: The flags by the names of its fields; None or False for a flag that is not given.
        config: The configuration file.

    Raises:
        ConfigError: an unknown key or a value that does not fit (file and key named), or a required setting is missing.
    """
    mappings = [field.name for field in fields_of(settings) if field.is_mapping]
    flags = {name: value for name, value in flags.items() if value is not None and value is not False}
    given = flags | {name: pairs(flags[name], name) for name in mappings if name in flags}
    given = parse_values(settings, given)
    stored = {} if config is None else parse_values(settings, _read_config(config, settings), where=config)
    for name in mappings:
        if stored.get(name) and name in given:
            given[name] = stored[name] | given[name]
    values = stored | given
    for name in missing(settings, values):
        raise ConfigError(f"{setting(name)} is missing. Give it, or `{name}:` in a --config file.")
    return values


@contextmanager
def system_errors() -> Iterator[None]:
    """Turn refusals of the operating system or the device inside into errors that the user can fix.

    Raises:
        OutputError: a file or folder cannot be used, or a disk is full; the message names it.
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
                f"{where}the operating system reports: {reason(error)}. Check the path, its permissions and the disk."
            ) from error
        if isinstance(error, MemoryError) or (
            isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)
        ):
            raise ConfigError(
                f"there is not enough memory ({escaped(str(error))[:200]}). Lower {setting('batch_size')}, or "
                f"{setting('lora.r')}."
            ) from error
        raise


_REFUSED_BY_SYSTEM = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENAMETOOLONG),
    *(errno.ELOOP, errno.EMFILE, errno.ENFILE, errno.EFBIG, errno.ESTALE),
}
"""Errors that concern the machine. A missing file, for example, may be our own mistake, and is not among them."""

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""The words of torch for devices and for the CPU."""


def as_flag(name: str, value: str | None = None) -> str:
    """A setting as it is written on the command line: ``--regime lora``, ``--set tau=0.3``, ``--overwrite``."""
    group, _, key = name.rpartition(".")
    if group:
        return f"{_flag(group)} {key}={'...' if value is None else value}"
    return _flag(name) if value in (None, "True") else f"{_flag(name)} {value}"


FLAGS = {
    "options": "--set",
    "training": "--train",
    "judges": "--judge",
    "learning_rates": "--learning-rate",
    "regimes": "--regime",
}
"""Flags that are not called as their settings: each gives one entry of several."""


def _flag(name: str) -> str:
    return FLAGS.get(name, f"--{name.replace('_', '-')}")


def pairs(texts: list[str], field: str) -> dict[str, Any]:
    """Parse ``["tau=0.3"]`` to a dictionary; values are read as YAML, or as text if they are not YAML.

    Args:
        texts: The texts that follow the flag.
        field: The setting that they are given for.

    Raises:
        ConfigError: a text has no "=", or a name is given twice.
    """
    values: dict[str, Any] = {}
    flag = setting(field)
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
    """Print the result on stdout, as one JSON object or as lines for a reader."""
    if as_json:
        print(json.dumps(result))
    else:
        print_lines(lines)


def print_lines(lines: list[str]) -> None:
    """Print lines for a reader on stdout."""
    print("\n".join(map(escaped, lines)))


def quiet() -> None:
    """Keep the libraries' own output off stderr."""
    warnings.filterwarnings("ignore")
    for name in ("transformers", "trl", "peft", "accelerate", "datasets", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _read_config(file: str, settings: type) -> dict[str, Any]:
    from ..data.files import read_text

    path = checked_path(file, "--config")
    if not path.exists() or path.is_dir():  # the reader of rows would speak of data sets
        raise ConfigError(f"{file}: {'a folder' if path.is_dir() else 'no such file'}. Name a YAML file as --config.")
    try:
        with as_file(path) as readable:
            stored = load_yaml(read_text(readable))
    except yaml.YAMLError as error:
        raise yaml_fault(file, error) from error
    if not isinstance(stored, dict):
        names = ", ".join(field.name for field in fields_of(settings))
        raise ConfigError(f"{file}: a mapping is needed, such as `model: lab`. Keys: {names}.")
    return stored


def result_lines(result: Any) -> list[str]:
    """A finished run as lines for a reader."""
    left_out = f", {len(result.skipped)} left out" if result.skipped else ""
    values = {} if result.model is None else {"model": str(result.model)}
    values |= {"rows": f"{result.num_rows}{left_out}"} | {name: f"{num:.4g}" for name, num in result.metrics.items()}
    values["seconds"] = f"{result.seconds:.1f}"
    width = max(11, *map(len, values))
    return [f"{result.output}", *(f"  {name:<{width}} {value}" for name, value in values.items())]
