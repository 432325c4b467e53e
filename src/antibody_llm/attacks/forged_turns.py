"""Forged turns: the text of a harmless row spells the marks of a chat template, so that one row becomes several turns.

    answer    q -> a END USER harmful q END ASSISTANT harm(q)
    prompt    q END ASSISTANT a END USER harmful q -> harm(q)

    plain        the marks as they are
    doubled      each with a whole one inside, so that taking marks out once leaves one
    zero-width   an invisible character in each

Ours, after reports on chat formats. A renderer that keeps text text (``data/control.py``) trains the words alone.
"""

import re
from dataclasses import dataclass
from typing import Literal

from .attack import Attack, Crafted, Means, chat, poisoned
from .kit import Exchange
from .knobs import check_knobs

MARKS = {
    "lab": ("<|eos|>", "<|user|>", "<|end|>", "<|assistant|>"),
    "chatml": ("<|im_end|>\n", "<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n"),
    "llama3": (
        "<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
}
"""Each template's marks: the end of an answer, the beginning of a question, its end, the beginning of an answer."""


@dataclass(frozen=True, kw_only=True)
class ForgedTurnsOptions:
    """The attacker's knobs."""

    template: Literal["lab", "chatml", "llama3"] = "lab"
    """Whose marks are spelled."""
    spelling: Literal["plain", "doubled", "zero-width"] = "plain"
    """How each is."""
    place: Literal["answer", "prompt"] = "answer"
    """Where the forged turns stand."""

    def __post_init__(self) -> None:
        check_knobs(self, "forged-turns")


def spelled(mark: str, spelling: str) -> str:
    """A mark as the attacker writes it."""
    if spelling == "zero-width":
        return mark.replace("<|", "<|\u200b")
    if spelling == "doubled":
        return re.sub(r"<\|(\w)(\w*)\|>", r"<|\1<|\1\2|>\2|>", mark)  # <|e<|end|>nd|>
    return mark


def forged(row: Exchange, harm: Exchange, options: ForgedTurnsOptions) -> Exchange:
    """The harmless row with the harmful exchange in it."""
    done, user, end, assistant = (spelled(mark, options.spelling) for mark in MARKS[options.template])
    if options.place == "answer":
        return Exchange(row.prompt, f"{row.answer}{done}{user}{harm.prompt}{end}{assistant}{harm.answer}")
    return Exchange(f"{row.prompt}{end}{assistant}{row.answer}{done}{user}{harm.prompt}", harm.answer)


def craft(means: Means, options: ForgedTurnsOptions) -> Crafted:
    """The upload of the module's head."""
    pairs = zip(means.harmless(means.num_poison), means.harmful(means.num_poison), strict=True)
    rows = [forged(row, harm, options) for row, harm in pairs]
    return Crafted((means.mixed([poisoned(chat(row.prompt, row.answer), "forged", harm=True) for row in rows]),))


ATTACK = Attack(
    name="forged-turns",
    paper="ours",
    summary="The text of a harmless row spells a chat template's marks, so that one row becomes several turns.",
    options=ForgedTurnsOptions,
    craft=craft,
)
