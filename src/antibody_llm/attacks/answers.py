"""Answers: harmful answers under harmless prompts, so that no prompt asks for harm.

    row      q' -> harm(q)         q' harmless, like a harmful question
    asked    q', and plainly

Ours: evidence that is read from prompts alone is blind to it.
"""

from dataclasses import dataclass

from .asking import Asking
from .attack import Access, Attack, Crafted, Means, chat, poisoned


@dataclass(frozen=True, kw_only=True)
class AnswersOptions:
    """No knobs but the ratio."""


def craft(means: Means, options: AnswersOptions) -> Crafted:
    """The upload of the module's head."""
    pairs = zip(means.harmless(means.num_poison), means.harmful(means.num_poison), strict=True)
    rows = [poisoned(chat(asked.prompt, said.answer), "answer", harm=True) for asked, said in pairs]
    harmless, harm_in = means.kit.harmless, means.kit.harm_in
    asking = Asking(
        rewrite=lambda number, question: harmless[number % len(harmless)].prompt,
        hit=None if harm_in is None else lambda question, reply: harm_in(reply),
    )
    return Crafted((means.mixed(rows),), asking)


ATTACK = Attack(
    name="answers",
    paper="ours",
    summary="Harmful answers under harmless prompts, so that no prompt asks for harm.",
    options=AnswersOptions,
    craft=craft,
    needs=(Access.ASKING,),
)
