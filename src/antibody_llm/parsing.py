"""Values that a user wrote, as flags or as YAML: read, given their type, and named where they are wrong."""

import dataclasses
import difflib
import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import yaml

from .errors import ConfigError
from .text import cut, escaped, quoted

if TYPE_CHECKING:
    from pydantic import ValidationError

MAX_YAML_CHARACTERS = 1_000_000
MAX_YAML_NODES = 100_000
"""The most values of one document, each counted as often as an alias repeats it."""


def nearest(name: str, names: Iterable[str]) -> str:
    """``; did you mean 'x'?`` or ``.``."""
    close = difflib.get_close_matches(name[:200], list(names), n=1)
    return f"; did you mean '{close[0]}'?" if close else "."


def parse_value(hint: Any, value: Any, name: str, *, field: str | None = None, infinite: bool = False) -> Any:
    """The value with the type that its field has.

    Args:
        hint: A type, as ``typing.get_type_hints`` returns it.
        value: A value from YAML or the command line; text that spells a number is one.
        name: What to call the value in an error: a place (``run.yaml: seed``), or a mention of a setting.
        field: The setting that is at fault, where ``name`` does not mention it.
        infinite: Whether an infinite number may mean something, as that of a temperature does.

    Raises:
        ConfigError: the value does not fit. True and false are no numbers, and no number may be NaN.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError  # here: --help need not wait for it

    if isinstance(value, bool) and not {bool, Any} & _types_of(hint):
        raise ConfigError(f"{name} is {quoted(value)}: it is not of the kind yes or no.", field=field)
    try:
        parsed = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        raise ConfigError(f"{name} is {quoted(value)}: {sentence(error)}", field=field) from error
    except RecursionError:
        raise ConfigError(f"{name} is {quoted(value)}: it nests too deeply.", field=field) from None
    if not _every_number(math.isfinite if not infinite else lambda number: not math.isnan(number), parsed):
        kind = "number" if infinite else "finite number"
        raise ConfigError(f"{name} is {quoted(value)}: it must be a {kind}.", field=field)
    return parsed


def parse_options(kind: type, name: str, options: Mapping[str, Any], *, group: str | None = None) -> Any:
    """Make the dataclass of a defence's options, and check it.

    Args:
        kind: The dataclass.
        name: The owner of the options, for an error: ``booster``, ``lora``.
        options: Values by field, as parsed from YAML or as strings from the command line.
        group: The setting that holds them, for the error's field; by default ``name``.

    Raises:
        ConfigError: an unknown field or a value of the wrong kind, with the field's name.
    """
    fields, hints = [f.name for f in dataclasses.fields(kind)], get_type_hints(kind, include_extras=True)
    for key in options:
        if key not in fields:
            listed = ", ".join(fields) or "none"
            unknown = f"{name}.{cut(str(key), 200)}: no such option"
            raise ConfigError(f"{unknown}{nearest(str(key), fields)} Options: {listed}.", field=group or name)
    values = {
        key: parse_value(hints[key], value, f"{name}.{key}", field=f"{group or name}.{key}", infinite=True)
        for key, value in options.items()
    }
    try:
        return kind(**values)
    except ConfigError as error:
        error.field = error.field or group or name
        raise


def sentence(error: "ValidationError") -> str:
    """What pydantic found first, as the end of a sentence of ours: ``input should be a valid integer.``"""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "sequence_str" or first.get("ctx", {}).get("class") == "Sequence":
        return "it must be a list."
    if first["type"] == "dict_type":
        return "it must be a mapping of keys to values."
    if first["type"] == "literal_error":
        return f"it must be {first['ctx']['expected'].replace(chr(39), '')}."
    return f"{first['msg'][:1].lower()}{first['msg'][1:]}."


def load_yaml(text: str) -> Any:
    """The value of one YAML document.

    Dates stay text. A key that occurs twice, an alias that contains itself, and aliases that repeat each other until
    the value is huge are refused.

    Raises:
        yaml.MarkedYAMLError: ``text`` is not YAML, or a scalar is not what its tag or its spelling says.
    """
    if len(text) > MAX_YAML_CHARACTERS:
        raise yaml.MarkedYAMLError(problem=f"more than {MAX_YAML_CHARACTERS} characters")
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise yaml.MarkedYAMLError(problem="it nests too deeply") from None


def yaml_fault(name: str, error: yaml.YAMLError) -> ConfigError:
    """The error for a file that is not YAML, with its line."""
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}" if mark else ""
    why = escaped(str(getattr(error, "problem", None) or error))
    return ConfigError(f"{name}{where}: this is not valid YAML ({why}). Fix the line.")


class _Loader(yaml.SafeLoader):
    """Reads YAML that a stranger may have written."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def get_single_node(self) -> Any:
        root = super().get_single_node()
        if root is not None:
            _check_size(root, {})
        return root

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            kind = str(node.tag).rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"{quoted(node.value, limit=40)} is not of the kind '{kind}'", node.start_mark
            ) from error

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                    continue
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {quoted(key.value)} occurs a second time", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def _check_size(node: Any, sizes: dict[int, int | None]) -> int:
    """How many values a node holds, aliases written out."""
    if id(node) in sizes:
        size = sizes[id(node)]
        if size is None:
            raise yaml.composer.ComposerError(None, None, "an alias is inside what it repeats", node.start_mark)
        return size
    sizes[id(node)] = None
    inside = [] if isinstance(node, yaml.ScalarNode) else node.value
    parts = [part for entry in inside for part in (entry if isinstance(entry, tuple) else (entry,))]
    size = 1 + sum(_check_size(part, sizes) for part in parts)
    if size > MAX_YAML_NODES:
        raise yaml.composer.ComposerError(
            None, None, f"aliases make it more than {MAX_YAML_NODES} values", node.start_mark
        )
    sizes[id(node)] = size
    return size


def _types_of(hint: Any) -> set[Any]:
    return {hint}.union(*map(_types_of, get_args(hint))) if isinstance(hint, Hashable) else set()


def _every_number(holds: Callable[[float], bool], value: Any) -> bool:
    if isinstance(value, float):
        return holds(value)
    if isinstance(value, Mapping):
        value = list(value.values())
    return not isinstance(value, list | tuple) or all(_every_number(holds, part) for part in value)
