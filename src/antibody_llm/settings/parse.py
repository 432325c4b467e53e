"""From what a user wrote, in YAML, JSON or flags, to the settings of a verb."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigError
from ..mentions import setting
from ..parsing import nearest, parse_value
from ..paths import checked_output, checked_path
from ..text import quoted
from .fields import fields_of

S = TypeVar("S")


def parse_settings(settings: type[S], given: Mapping[str, Any], *, where: str = "") -> S:
    """The settings of a verb, from the body of a request or another mapping of plain values.

    Args:
        settings: The verb's dataclass.
        given: Values by the names of its fields.
        where: What an error begins with: a file, say. Nothing by default; a field is then spelled as a setting.

    Raises:
        ConfigError: an unknown name (the nearest one is offered), a value that does not fit, or one that is missing;
            ``field`` is the name.
        OutputError: the folder to make cannot be made.
    """
    return make_settings(settings, parse_values(settings, given, where=where))


def parse_values(settings: type, given: Mapping[Any, Any], *, where: str = "") -> dict[str, Any]:
    """Each value with the type of its field; some may be missing.

    Raises:
        ConfigError: as ``parse_settings``.
    """
    fields, before = {field.name: field for field in fields_of(settings)}, f"{where}: " if where else ""
    values = {}
    for name, value in given.items():
        if name not in fields:
            close, names = nearest(str(name)[:200], fields), ", ".join(fields)
            raise ConfigError(f"{before}{quoted(name)}: no such key{close} Keys: {names}.", field=str(name)[:200])
        called = f"{before}{name}" if where else setting(name)
        # Whether an infinite number means something is for the defence to say whose option it is.
        infinite = fields[name].is_mapping
        values[name] = parse_value(fields[name].hint, value, called, field=name, infinite=infinite)
    return values


def missing(settings: type, names: Iterable[str]) -> list[str]:
    """Fields that must be given and are not among ``names``."""
    return [field.name for field in fields_of(settings) if field.required and field.name not in names]


def make_settings(settings: type[S], values: Mapping[str, Any]) -> S:
    """The settings with these values, whose paths are checked.

    Raises:
        ConfigError: one is missing, or a path cannot be meant.
        OutputError: the folder to make cannot be made.
    """
    for name in missing(settings, values):
        raise ConfigError(f"{setting(name)} is missing. Give it.")
    for field in fields_of(settings):
        value = values.get(field.name)
        if field.is_path and isinstance(value, str | Path):
            (checked_output if field.folder else checked_path)(value, setting(field.name))
    return settings(**values)
