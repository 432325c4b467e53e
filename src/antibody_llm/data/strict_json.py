"""Read JSON as every parser does: what parsers disagree on is refused, and the place named."""

import json
import math
from typing import Any

from ..text import quoted
from .problems import BadRow, name_of
from .unreadable import broken_text

MAX_DEPTH = 500
"""How deep a row that JSON cannot hold is searched for the place."""


def parse_json(text: str) -> Any:
    """The JSON value of ``text``, on which all parsers agree.

    Raises:
        BadRow: broken, too deep, a field given twice in one object, or a number that JSON or a float cannot hold.
    """
    try:
        return STRICT.decode(text)
    except (ValueError, RecursionError) as error:
        raise what_broke(text, 0, error, "") from None


def as_json(value: Any) -> Any:
    """What a reader of JSON would have in place of a Python object: tuples become lists, and keys become text.

    Raises:
        BadRow: JSON cannot hold it (names the place), or parsers disagree on what it would mean.
    """
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        raise _unlike_json(value) from None
    return parse_json(text)


def _unlike_json(value: Any) -> BadRow:
    """The first place of ``value`` that JSON cannot hold."""
    places: list[tuple[str, Any, tuple[int, ...]]] = [("", value, ())]
    while places:
        field, here, inside = places.pop()
        if id(here) in inside:
            return BadRow("holds itself", "it holds itself, and a row has an end. Leave it out.", field)
        if len(inside) > MAX_DEPTH:
            break
        inside = (*inside, id(here))
        if isinstance(here, dict):
            keys = [key for key in here if not isinstance(key, str | int | float | None)]
            if keys:
                return BadRow("no JSON key", f"a key is {type(keys[0]).__name__}, and a key is text. Change it.", field)
            places += [(_within(field, str(key)), here[key], inside) for key in reversed(here)]
        elif isinstance(here, list | tuple):
            places += [(f"{field}[{index}]", inner, inside) for index, inner in reversed(list(enumerate(here)))]
        elif not isinstance(here, str | float | None):
            try:
                json.dumps(here)
            except (TypeError, ValueError):
                what = type(here).__name__
                return BadRow(
                    "not JSON", f"holds {what}, which JSON cannot. Give text, numbers, lists or dicts.", field
                )
    return BadRow("too deep", "nested too deeply to be read. Flatten or remove it.")


class Disputed(ValueError):
    """Parsers disagree on what this means."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise Disputed
    return made


def _constant(name: str) -> Any:
    raise Disputed


def _float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise Disputed
    return number


STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)


class _Pairs(list[tuple[str, Any]]):
    """An object with every field that was written, also those given twice."""


LENIENT = json.JSONDecoder(object_pairs_hook=_Pairs)


def _disputed(value: Any) -> BadRow:
    """The first place of ``value``, as ``LENIENT`` reads it, that parsers disagree on."""
    places: list[tuple[str, Any]] = [("", value)]
    while places:
        field, here = places.pop()
        if isinstance(here, _Pairs):
            seen: set[str] = set()
            for name, _ in here:
                if name in seen:
                    return BadRow(
                        "a field twice",
                        f"the object gives {quoted(name)} twice, and parsers differ on which of the two counts. "
                        "Remove one.",
                        _within(field, name),
                    )
                seen.add(name)
            places += [(_within(field, name), inner) for name, inner in reversed(here)]
        elif isinstance(here, list):
            places += [(f"{field}[{index}]", inner) for index, inner in reversed(list(enumerate(here)))]
        elif isinstance(here, float) and not math.isfinite(here):
            return BadRow(
                "not a JSON number",
                "NaN, Infinity and numbers beyond 1e308 are no JSON: other parsers refuse or change them. "
                "Write null, or leave the field out.",
                field,
            )
    raise AssertionError("the strict parser refused what the lenient one finds nothing wrong with")


def _within(field: str, name: str) -> str:
    return f"{field}.{name_of(name)}" if field else name_of(name)


def what_broke(text: str, position: int, error: Exception, rule: str) -> BadRow:
    """What is wrong with the value that begins at ``position``.

    Args:
        text: What was parsed.
        position: Where the value begins.
        error: What the strict parser raised.
        rule: What the place should hold, as a sentence; may be empty.
    """
    if isinstance(error, Disputed):
        try:
            return _disputed(LENIENT.raw_decode(text, position)[0])
        except (ValueError, RecursionError) as worse:
            error = worse
    if isinstance(error, RecursionError):
        return BadRow("too deep", "broken JSON: nested too deeply to be read. Flatten or remove it.")
    if not isinstance(error, json.JSONDecodeError):
        return BadRow("number too long", "broken JSON: a number has too many digits. Write it as text, or remove it.")
    return BadRow(*broken_text(text, error, rule))
