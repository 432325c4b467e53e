"""Text of strangers in messages: quoted, escaped and cut, so that it can neither steer a terminal nor fill it."""

import reprlib
import unicodedata
from typing import Any

MAX_QUOTED = 120
"""Characters of one quoted value."""
MAX_MESSAGE = 4000
"""Characters of a whole message."""


def quoted(value: Any, *, limit: int = MAX_QUOTED) -> str:
    """The value as Python would write it, in at most ``limit`` characters.

    Control characters, escape sequences, line breaks, halves of surrogate pairs and marks that turn the direction of
    writing are escaped. Only the beginning of a large value is looked at, so that a list that nests a million times
    costs nothing.

    Args:
        value: Anything that a user or a file gave.
        limit: The most characters.
    """
    return cut(escaped(_Short(limit).repr(value)), limit)


def named(names: Any, *, limit: int = 10) -> str:
    """Names that a file gave, in a row: each escaped and cut, and only the first ``limit`` of them."""
    some = [cut(escaped(str(name)), MAX_QUOTED) for name in list(names)[:limit]]
    return ", ".join(some) + (f", ... ({len(names) - limit} more)" if len(names) > limit else "")


def counted(num: int, one: str, many: str | None = None) -> str:
    """A number with its noun: ``1 row``, ``12 rows``; ``counted(2, "entry", "entries")``."""
    return f"{num} {one if num == 1 else many or f'{one}s'}"


def escaped(text: str) -> str:
    r"""``text`` on one line: what is not printable is written ``\x1b`` or ``\u202e``, a line break as a space."""
    if text.isprintable():
        return text
    return "".join(map(_escaped, text.replace("\r\n", " ").replace("\n", " ")))


def cut(text: str, limit: int = MAX_MESSAGE) -> str:
    """``text`` without its middle where it is too long; the end of a message says how to fix what its beginning says.

    Args:
        text: Any text.
        limit: The most characters, not counting the mark of the cut.
    """
    if len(text) <= limit:
        return text
    tail = limit // 4
    return f"{text[: limit - tail]}... ({counted(len(text) - limit, 'character')} cut) ...{text[len(text) - tail :]}"


def _escaped(character: str) -> str:
    # Other spaces than the plain one (a no-break space, an ideographic one) are harmless.
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")


class _Short(reprlib.Repr):
    """A ``repr`` that looks at no more of a value than it shows."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.maxlevel, self.maxother, self.maxlong = 3, limit, 40
        self.maxstring = limit
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 4

    def repr_str(self, x: str, level: int) -> str:
        return repr(x) if len(x) <= self.maxstring else f"{x[: self.maxstring - 4]!r}..."

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write an integer of more than 4300 digits.
        return repr(x) if x.bit_length() < 256 else f"an integer of {x.bit_length()} bits"
