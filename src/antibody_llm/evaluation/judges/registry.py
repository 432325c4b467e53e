"""Judges by name. To add one: a class with the attributes of ``protocol.Judge``, and a line in ``JUDGES``."""

from collections.abc import Callable
from difflib import get_close_matches

from ...errors import ConfigError
from .keywords import KeywordJudge
from .lab import LabJudge
from .protocol import Judge

JUDGES: dict[str, Callable[[], Judge]] = {
    "lab": LabJudge,
    "keywords": KeywordJudge,  # a weak baseline
}


def make_judge(name: str) -> Judge:
    """The judge of that name.

    Raises:
        ConfigError: There is none; offers the nearest name.
    """
    if name not in JUDGES:
        near = get_close_matches(name, JUDGES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ConfigError(f"judge {name!r}: no such judge{hint} Judges: {', '.join(JUDGES)}.")
    return JUDGES[name]()
