"""Rows that repeat within one source, and prompts that two sources share: counted exactly and after normalisation.

Normalised texts have no difference in case, white space, Unicode form (NFKC) and punctuation at their ends: people
who copy a row by hand change these. Nothing here removes a row; a repeat weighs more in training, and a prompt that is
both trained and evaluated makes a measure too good. Only a digest of each row is kept.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from .records import Message, Record

NUM_LINES_SHOWN = 5


@dataclass
class Repeats:
    """Rows of one source that repeat an earlier one.

    Attributes:
        num_rows: How many rows were counted.
        exact: Line of each row whose text is that of an earlier row, and the earlier row's line.
        normalised: Line of each row that equals an earlier one only after normalisation, and the earlier row's line.
    """

    num_rows: int = 0
    exact: list[tuple[int, int]] = field(default_factory=list)
    normalised: list[tuple[int, int]] = field(default_factory=list)

    def __str__(self) -> str:
        """One sentence for a reader; empty where nothing repeats."""
        parts = []
        if self.exact:
            parts.append(f"{len(self.exact)} of {self.num_rows} rows repeat an earlier one ({_shown(self.exact)})")
        if self.normalised:
            parts.append(
                f"{len(self.normalised)} of {self.num_rows} differ from an earlier one only in case, white space or "
                f"punctuation at the ends ({_shown(self.normalised)})"
            )
        return "; ".join(parts)


class RepeatCounter:
    """Counts repeats in rows that come one by one.

    Args:
        normalised: Whether to look for rows that are only nearly equal too, which costs about as much as parsing.
    """

    def __init__(self, *, normalised: bool = True) -> None:
        self.found = Repeats()
        self._exact: dict[bytes, tuple[int, int]] = {}
        self._normalised: dict[bytes, tuple[int, int]] | None = {} if normalised else None

    def add(self, record: Record) -> None:
        """Count one more row."""
        self.found.num_rows += 1
        here = (record.row_id, record.line)  # rows of a JSON list may all be in one line
        first = self._exact.setdefault(_key(record.tools, record.messages), here)
        if first != here:
            self.found.exact.append((record.line, first[1]))
        elif self._normalised is not None:
            first = self._normalised.setdefault(_normalised_key(record.tools, record.messages), here)
            if first != here:
                self.found.normalised.append((record.line, first[1]))


def repeats(records: Iterable[Record], *, normalised: bool = True) -> Repeats:
    """The rows of one source that repeat an earlier one. See ``RepeatCounter``."""
    counter = RepeatCounter(normalised=normalised)
    for record in records:
        counter.add(record)
    return counter.found


@dataclass(frozen=True)
class Overlap:
    """Rows of a second source whose prompt is in a first one.

    Attributes:
        first: Name of the first source, for example the training rows.
        second: Name of the second, for example the validation rows.
        num_rows: How many rows the second one has.
        exact: Line in the second source, and a line in the first that has the same prompt.
        normalised: Lines of the two sources whose prompts are equal only after normalisation.
    """

    first: str
    second: str
    num_rows: int
    exact: tuple[tuple[int, int], ...]
    normalised: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        """One sentence for a reader; empty where nothing is shared."""
        parts = []
        for pairs, how in ((self.exact, "also in"), (self.normalised, "nearly also in")):
            if pairs:
                parts.append(f"{len(pairs)} of {self.num_rows} prompts are {how} {self.first} ({_shown(pairs)})")
        return f"{self.second}: {'; '.join(parts)}" if parts else ""


def overlap(first: Sequence[Record], second: Sequence[Record], *, names: tuple[str, str]) -> Overlap:
    """Prompts of ``second``, for example of validation rows, that are prompts of ``first`` too.

    Args:
        first: Rows of one source, such as the training rows.
        second: Rows of another, such as the validation rows.
        names: What a report calls the two.
    """
    exact = {_key(record.tools, _prompt(record)): record.line for record in reversed(first)}
    normalised = {_normalised_key(record.tools, _prompt(record)): record.line for record in reversed(first)}
    same: list[tuple[int, int]] = []
    alike: list[tuple[int, int]] = []
    for record in second:
        prompt = _prompt(record)
        if (line := exact.get(_key(record.tools, prompt))) is not None:
            same.append((record.line, line))
        elif (line := normalised.get(_normalised_key(record.tools, prompt))) is not None:
            alike.append((record.line, line))
    return Overlap(*names, len(second), tuple(same), tuple(alike))


def normalise(text: str) -> str:
    """The text without what a copy by hand changes."""
    text = " ".join((text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold().split())
    start, end = 0, len(text)
    while start < end and not _counts(text[start]):
        start += 1
    while end > start and not _counts(text[end - 1]):
        end -= 1
    return text[start:end] or text  # of nothing but punctuation, all of it counts


def _counts(letter: str) -> bool:
    return letter.isalnum() or unicodedata.category(letter)[0] not in "PZ"


def _prompt(record: Record) -> tuple[Message, ...]:
    """What is asked: every message in front of the answer that ends the row."""
    return record.messages[:-1] if record.messages[-1].role == "assistant" else record.messages


def _key(tools: str, messages: Iterable[Message]) -> bytes:
    parts = [tools]
    for message in messages:
        parts += (message.role, message.content) if message.trained else (message.role, message.content, "untrained")
        if message.reasoning or message.tool_calls or message.tool_call_id:
            parts.append(repr((message.reasoning, message.tool_calls, message.tool_call_id)))
    return blake2b("\0".join(parts).encode(), digest_size=16).digest()


def _normalised_key(tools: str, messages: Iterable[Message]) -> bytes:
    parts = [tools]
    for message in messages:
        parts += (message.role, normalise(message.content))
        # Ids only link a call to its answer.
        parts += [f"{call.name} {call.arguments}" for call in message.tool_calls]
    return blake2b("\0".join(parts).encode(), digest_size=16).digest()


def _shown(pairs: Sequence[tuple[int, int]]) -> str:
    some = ", ".join(f"line {line} as line {earlier}" for line, earlier in pairs[:NUM_LINES_SHOWN])
    return some + (", ..." if len(pairs) > NUM_LINES_SHOWN else "")
