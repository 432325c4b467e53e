"""What an attacker may turn: a frozen dataclass of options whose fields say their ranges.

    shots: Annotated[int, Between(1, 100, log=True)] = 10       a number
    place: Literal["before", "after"] = "before"                one of several
    benign: bool = False                                        yes or no

``check_knobs`` holds a value to its range, ``knobs`` lists them for a search. A text has no range: it is checked to be
there, and a search leaves it alone.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from ..errors import ConfigError
from ..parsing import nearest
from ..text import quoted


@dataclass(frozen=True)
class Between:
    """A number's range, both ends included."""

    low: float
    high: float
    log: bool = False
    """Whether a search draws its logarithm."""


@dataclass(frozen=True, kw_only=True)
class Knob:
    """One option of an attack, as a search sees it."""

    name: str
    default: Any
    kind: str
    """``int``, ``float``, ``choice`` or ``text``."""
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()

    def described(self) -> dict[str, Any]:
        """What there is to say of this kind, for a program."""
        about: dict[str, Any] = {"name": self.name, "kind": self.kind, "default": self.default}
        if self.kind == "choice":
            return about | {"choices": list(self.choices)}
        return about if self.kind == "text" else about | {"low": self.low, "high": self.high, "log": self.log}


def knobs(options: type) -> list[Knob]:
    """The knobs of an options' dataclass, in its order."""
    hints = get_type_hints(options, include_extras=True)
    return [_knob(field.name, hints[field.name], field.default) for field in dataclasses.fields(options)]


def check_knobs(options: Any, name: str) -> None:
    """Hold every option to its range; to be called in ``__post_init__``.

    Args:
        options: An instance of the dataclass.
        name: The attack's, for the error.

    Raises:
        ConfigError: a value is outside; says what would fit, and the nearest name where names are meant.
    """
    for knob in knobs(type(options)):
        value = getattr(options, knob.name)
        where = f"{name}.{knob.name}"
        if knob.kind == "choice":
            if value not in knob.choices:
                listed = ", ".join(map(str, knob.choices))
                near = nearest(str(value), map(str, knob.choices))
                raise ConfigError(
                    f"{where} is {quoted(value)}{near} Choose one of: {listed}.", field=f"options.{knob.name}"
                )
        elif knob.kind == "text":
            if not value.strip():
                raise ConfigError(f"{where} is empty. Give it some text.", field=f"options.{knob.name}")
        elif isinstance(value, bool) or not knob.low <= value <= knob.high:
            raise ConfigError(
                f"{where} is {quoted(value)}: give {knob.low:g} to {knob.high:g}.", field=f"options.{knob.name}"
            )


def _knob(name: str, hint: Any, default: Any) -> Knob:
    if hint is bool:
        return Knob(name=name, default=default, kind="choice", choices=(False, True))
    if get_origin(hint) is Literal:
        return Knob(name=name, default=default, kind="choice", choices=get_args(hint))
    if hint is str:
        return Knob(name=name, default=default, kind="text")
    assert get_origin(hint) is Annotated, f"{name}: a number says its range"
    kind, between = get_args(hint)
    return Knob(name=name, default=default, kind=kind.__name__, low=between.low, high=between.high, log=between.log)


def common_knobs(poison_ratio: float) -> list[Mapping[str, Any]]:
    """What can be turned in every attack: the arguments of ``craft``."""
    ratio = Knob(name="poison_ratio", default=poison_ratio, kind="float", low=0.0, high=1.0)
    return [ratio.described()]
