"""Choosing some of a provider's rows: at random, and those that decline."""

import random
import re
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

_DECLINES = re.compile(
    r"\b(sorry|apologi[sz]e|cannot|can't|can not|won't|will not|may not|unable|not able|not something"
    r"|declines?|refuses?)\b"
)
_NUM_OPENING_WORDS = 12


def declines(completion: str) -> bool:
    """Whether a completion refuses, by its first words; for rows that the provider wrote, not for a model's answers."""
    opening = completion.replace("\u2019", "'").casefold().split()[:_NUM_OPENING_WORDS]
    return _DECLINES.search(" ".join(opening)) is not None


def drawn(items: Sequence[T], num: int, *, seed: str) -> list[T]:
    """``num`` different items at random, the same for the same seed; there are at least as many.

    Args:
        items: The items to draw from.
        num: How many to draw.
        seed: Names who draws and in which run, so that two draws of a run differ.
    """
    return random.Random(seed).sample(list(items), num)
