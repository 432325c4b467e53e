"""Judges by name. To add one: a class with the attributes of ``protocol.Judge``, and a line in ``JUDGES``."""

from collections.abc import Callable

from ...errors import ConfigError
from ...parsing import nearest
from ...text import quoted
from .keywords import KeywordJudge
from .lab import LabJudge
from .own import is_own, own_judge
from .protocol import Judge

JUDGES: dict[str, Callable[[], Judge]] = {
    "lab": LabJudge,
    "keywords": KeywordJudge,  # a weak baseline
}


def make_judge(name: str) -> Judge:
    """The judge of that name; one with a colon says where a judge of the user's own is (own.py).

    Raises:
        ConfigError: There is none; offers the nearest name.
    """
    if is_own(name):
        return own_judge(name)
    if name not in JUDGES:
        unknown = f"judge {quoted(name)}: no such judge"
        raise ConfigError(f"{unknown}{nearest(name, JUDGES)} Judges: {', '.join(JUDGES)}.", field="judges")
    return JUDGES[name]()
