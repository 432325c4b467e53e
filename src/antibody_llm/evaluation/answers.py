"""Rules by which a completion is compared with the reference answer. ``ANSWERS`` maps a name to a rule.

A rule takes a text and a reference and says whether they agree. A completion that the rule cannot read is a wrong
answer; a *reference* that it cannot read is an error, because 0 would blame the model (and Booster's script, where a
missing number is infinity on both sides, even counts it right).
"""

import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from typing import TypeVar

from ..errors import ConfigError
from ..parsing import nearest
from ..text import quoted

_T = TypeVar("_T")
Rule = Callable[[str, str], bool]

_NUMBER = re.compile(r"(?:(?<![\w)])-)?\$?((?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)")
_MARKER = re.compile(r"####|the final answer is:?", re.IGNORECASE)
_PUBLISHED_NUMBER, _PUBLISHED_PHRASE = re.compile(r"-?\d+\.?\d*"), "The final answer is: "


def normalised(text: str) -> str:
    """The text in Unicode NFKC, case folded, whitespace collapsed, one closing ``.`` or ``!`` removed."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.removesuffix(".").removesuffix("!").rstrip()


def number_answer(text: str) -> Decimal | None:
    """The number after ``####`` or "The final answer is:", at its first occurrence with one; else the last number.

    The first, because a model that goes on after its answer goes on with a new question. Thousands separators and
    ``$`` are dropped. None where there is no number.

    Source: GSM8K marks its answers with ``####``; Booster's gsm8k/pred_eval.py writes the phrase instead.
    """
    for marker in _MARKER.finditer(text):
        after = _NUMBER.search(text, marker.end())
        if after:
            return _decimal(after)
    numbers = list(_NUMBER.finditer(text))
    return _decimal(numbers[-1]) if numbers else None


def exact(completion: str, reference: str) -> bool:
    """Whether both are equal after ``normalised``: a rule for labels."""
    return normalised(completion) == _readable(normalised(reference), "has no text")


def contains(completion: str, reference: str) -> bool:
    """Whether the reference is in the completion as whole words, after ``normalised``: lenient, for free text."""
    wanted = re.escape(_readable(normalised(reference), "has no text"))
    return re.search(rf"(?<!\w){wanted}(?!\w)", normalised(completion)) is not None


def gsm8k(completion: str, reference: str) -> bool:
    """Whether both have the same ``number_answer``, compared as exact decimals (18 equals 18.0)."""
    return number_answer(completion) == _readable(number_answer(reference), "has no number")


def sst2_parity(completion: str, reference: str) -> bool:
    """Whether the stripped completion is the label, as it is or with a capital: Booster's sst2/pred_eval.py."""
    label = _readable(reference.strip(), "has no text")
    return completion.strip() in (label, label.capitalize())


def agnews_parity(completion: str, reference: str) -> bool:
    """Whether the completion is the label or its small form: Booster's agnews/pred_eval.py.

    The small form of Sci/Tech is ``sci`` there, so that ``sci/tech`` is wrong.
    """
    label = _readable(reference.strip(), "has no text")
    return completion.strip() in (label, label.lower().partition("/")[0])


def gsm8k_parity(completion: str, reference: str) -> bool:
    """Whether both have the same number by the rule of Booster's gsm8k/pred_eval.py.

    It is the first one after "The final answer is: ", written like this, and up to where that comes again; else the
    last of the text. ``####`` means nothing there, a hyphen before a digit is a minus sign (5-3 ends with -3), and a
    text without a number is infinity, so that no number in both is right.
    """
    return _published_number(completion) == _published_number(reference)


def _published_number(text: str) -> float:
    text = text.replace(",", "")
    marked = [_PUBLISHED_NUMBER.findall(part) for part in text.split(_PUBLISHED_PHRASE)[1:2]]
    if marked and marked[0]:
        return float(marked[0][0])
    return float((_PUBLISHED_NUMBER.findall(text) or ["inf"])[-1])


ANSWERS: dict[str, Rule] = {
    "exact": exact,
    "contains": contains,
    "gsm8k": gsm8k,
    "sst2-parity": sst2_parity,
    "agnews-parity": agnews_parity,
    "gsm8k-parity": gsm8k_parity,
}


def answer_rule(name: str, *, field: str = "answer") -> Rule:
    """The rule of that name; ``field`` is the setting that gives it.

    Raises:
        ConfigError: There is none; offers the nearest name.
    """
    if name not in ANSWERS:
        unknown = f"answer rule {quoted(name)}: no such rule"
        raise ConfigError(f"{unknown}{nearest(name, ANSWERS)} Rules: {', '.join(ANSWERS)}.", field=field)
    return ANSWERS[name]


class UnreadableReference(ValueError):
    """The reference has nothing that the rule could compare with. The caller, which knows the row, names it."""


def _readable(value: _T | None, why: str) -> _T:
    if value is None or value == "":
        raise UnreadableReference(why)
    return value


def _decimal(match: re.Match[str]) -> Decimal:
    value = Decimal(match.group(1).replace(",", ""))
    return -value if match.group(0).startswith("-") else value
