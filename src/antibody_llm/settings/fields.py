"""What the fields of a settings dataclass say of themselves: type, default, help."""

import ast
import dataclasses
import inspect
import os
import re
import textwrap
from collections.abc import Hashable, Iterable, Mapping, Sequence
from enum import Enum
from functools import cache
from numbers import Integral, Number, Real
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from ..errors import ConfigError
from ..mentions import setting
from ..text import quoted

Rows = str | Path | Sequence[Mapping[str, Any]]
"""A file, a data set's folder or Hub id, or rows in any accepted format as dictionaries."""

WeightType = Literal["auto", "float32", "bfloat16"]
"""Type of the weights of a model that is only read; auto is float32 on a CPU and bfloat16 on a GPU."""

ELSEWHERE = {"stored": False}
"""Metadata of a field without an entry in config.yaml: it does not decide the result, or another entry says it."""
FOLDER = {"stored": False, "folder": True}
"""Metadata of a field that names a folder to make."""


@dataclasses.dataclass(frozen=True)
class SettingField:
    """One parameter of a verb."""

    name: str
    hint: Any
    """Its type."""
    default: Any
    """``dataclasses.MISSING`` where it must be given."""
    text: str
    """The attribute's docstring, on one line."""
    stored: bool
    """Whether config.yaml has the value under this name unless a verb says otherwise."""
    folder: bool
    """Whether it names a folder to make."""

    @property
    def help(self) -> str:
        """The first sentence of the docstring, without its marks."""
        return re.split(r"(?<=[.?!])\s+(?=[A-Z`])", self.text, maxsplit=1)[0].replace("``", "")

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is dataclasses.MISSING

    @property
    def kinds(self) -> set[Any]:
        """The types that a value may have, without what they contain."""
        members = get_args(self.hint) if get_origin(self.hint) in (Union, UnionType) else (self.hint,)
        return {get_origin(member) or member for member in members} - {type(None)}

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts that a value may be, where it may not be any text."""
        members = (self.hint, *get_args(self.hint))
        return next((get_args(member) for member in members if get_origin(member) is Literal), ())

    @property
    def is_path(self) -> bool:
        """Whether a text is the path of a file or folder, or a Hub id."""
        return Path in self.kinds

    @property
    def is_mapping(self) -> bool:
        """Whether the value is names with values."""
        return self.kinds == {Mapping}


def fields_of(settings: type) -> tuple[SettingField, ...]:
    """The fields of a settings dataclass: those that must be given, its own, then those that it shares."""
    return _fields_of(cast(Hashable, settings))


@cache
def _fields_of(settings: Any) -> tuple[SettingField, ...]:
    hints, texts = get_type_hints(settings), _docstrings(settings)
    fields = [
        SettingField(
            name=field.name,
            hint=hints[field.name],
            default=field.default,
            text=texts.get(field.name, ""),
            stored=field.metadata.get("stored", True),
            folder=field.metadata.get("folder", False),
        )
        for field in dataclasses.fields(settings)
    ]
    own = inspect.get_annotations(settings)
    return tuple(sorted(fields, key=lambda field: (not field.required, field.name not in own)))


def check_choices(settings: Any) -> None:
    """Raises ConfigError where a value is none of those that its field may have."""
    for field in fields_of(type(settings)):
        value = getattr(settings, field.name)
        if field.choices and value not in (*field.choices, field.default):
            raise ConfigError(f"{setting(field.name)} is {quoted(value)}: it must be {' or '.join(field.choices)}.")


def check_kinds(settings: type, values: Mapping[str, Any]) -> None:
    """Refuse values of the wrong kind. Python hands over whatever it is given, a text as a number among it.

    Args:
        settings: The verb's dataclass.
        values: Values by the names of its fields.

    Raises:
        ConfigError: a value is of no kind that its field may have.
    """
    for field in fields_of(settings):
        value = values.get(field.name, field.default)
        if value is field.default or any(_is_of(kind, value) for kind in field.kinds):
            continue
        name = setting(field.name)
        if isinstance(value, type):
            raise ConfigError(f"{name} is the class {value.__name__}. Give an object of it.")
        words = [text for kind, text in _KINDS.items() if kind in field.kinds]
        words += [f"a {kind.__name__} object" for kind in field.kinds if kind not in _KINDS]
        raise ConfigError(f"{name} is {quoted(value)}: it must be {' or '.join(words)}.")


_KINDS: Mapping[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    Mapping: "a dictionary",
    Sequence: "a list",
}
"""The kinds that a field may have, in words. Any other is a class of ours."""


def _is_of(kind: Any, value: Any) -> bool:
    if isinstance(value, bool) or kind is bool:
        return kind is bool and isinstance(value, bool)
    if kind is Literal:
        return True  # check_choices has the list
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real)
    if kind is Path:
        return isinstance(value, os.PathLike)
    if kind is Sequence:
        return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | os.PathLike)
    if kind in (str, Mapping):
        return isinstance(value, kind)
    return not isinstance(value, type | str | Number | Iterable)  # an object of a class that only torch would bring


def written_out(settings: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.yaml: what a verb worked out, and every other setting that decides the result.

    Args:
        settings: The verb's.
        config: What it worked out, under the names of the fields where it means one.
    """
    others = (field.name for field in fields_of(type(settings)) if field.stored and field.name not in config)
    return dict(config) | {name: plain(getattr(settings, name)) for name in others}


def plain(value: Any) -> Any:
    """A dataclass as YAML can hold it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | dict | None) else str(value)


def _docstrings(settings: type) -> dict[str, str]:
    """Each attribute's docstring; those of a subclass win."""
    texts: dict[str, str] = {}
    for cls in reversed(settings.__mro__):
        if dataclasses.is_dataclass(cls):
            texts |= _docstrings_of(cls)
    return texts


def _docstrings_of(cls: type) -> dict[str, str]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    texts = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            texts[field.target.id] = " ".join(text.value.value.split())
    return texts
