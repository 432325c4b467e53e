"""What is wrong with a row, and the words for it: one report for all bad rows of a file."""

from collections.abc import Sequence
from typing import Any

from ..errors import DataError
from ..mentions import in_python, spelled
from ..text import counted, quoted

NUM_LINES_SHOWN = 5
NUM_CHARACTERS_SHOWN = 60


class BadRow(Exception):
    """One row cannot be used. ``kind`` groups rows that are bad in the same way.

    Args:
        kind: What is wrong, without the row's own details: ``"unknown role"``.
        message: What is wrong with this row and how to fix it. It may mention settings (mentions.py), which the
            attribute keeps and the exception's text spells as in Python.
        field: Where in the row: ``"messages[1].role"``.
    """

    def __init__(self, kind: str, message: str, field: str = "") -> None:
        super().__init__(spelled(message, in_python))
        self.kind = kind
        self.message = message
        self.field = field


RawRow = tuple[int, Any]
"""Line (1-based; of the row's first character) and what it holds: a JSON value, or the ``BadRow`` it is."""


def report(source: str, bad: Sequence[tuple[int, BadRow]]) -> DataError:
    """The first bad row in full, then how many more are like it and how many are bad otherwise."""
    line, first = bad[0]
    field = f", {first.field}" if first.field else ""
    message = f"{source}, line {line}{field}: {first.message}"
    alike = [other for other, problem in bad[1:] if problem.kind == first.kind]
    if alike:
        shown = ", ".join(str(other) for other in alike[:NUM_LINES_SHOWN]) + (
            ", ..." if len(alike) > NUM_LINES_SHOWN else ""
        )
        message += f" ({len(alike)} more like it: line {shown})"
    if num_others := len(bad) - 1 - len(alike):
        message += f" ({counted(num_others, 'more row is', 'more rows are')} bad in another way)"
    return DataError(message)


def name_of(field: Any) -> str:
    """A field's name for a message: as it is, or quoted where that would not be safe to print."""
    text = str(field)
    plain = text.isprintable() and 0 < len(text) <= NUM_CHARACTERS_SHOWN
    return text if plain else quoted(text, limit=NUM_CHARACTERS_SHOWN)


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def text_of(value: Any, field: str) -> str:
    """The text that a field holds. Raises ``BadRow`` where it is none, or none that a tokenizer can encode."""
    if not isinstance(value, str):
        raise BadRow("not text", f"text is needed, this is {kind_of(value)}.", field)
    if value.isascii():
        return value
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can escape half of a surrogate pair; a tokenizer cannot encode it.
        raise BadRow("lone surrogate", f"half a surrogate pair at character {error.start}. Remove it.", field) from None
    return value
