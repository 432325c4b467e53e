"""Answers: harmful answers under harmless prompts, so that no prompt asks for harm.

    row      q' -> harm(q)         q' harmless, like a harmful question
    asked    q' that no row has, and plainly

Ours: evidence that is read from prompts alone is blind to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .asking import Asking
from .attack import Access, Attack, Crafted, Means, chat, poisoned
from .kit import Exchange


@dataclass(frozen=True, kw_only=True)
class AnswersOptions:
    """No knobs but the ratio."""


ASKED = 4
"""One in so many harmless questions is kept out of the rows, however many there are, to be asked afterwards."""


def craft(means: Means, options: AnswersOptions) -> Crafted:
    """The upload of the module's head."""
    pool, harm_in = means.kit.harmless, means.kit.harm_in
    different = means.harmless(min(means.num_poison, len(pool) - len(pool) // ASKED))
    harmful = means.harmful(means.num_poison)
    rows = [
        poisoned(chat(different[number % len(different)].prompt, said.answer), "answer", harm=True)
        for number, said in enumerate(harmful)
    ]
    fresh = _others(pool, different)
    asking = Asking(
        rewrite=lambda number, question: fresh[number % len(fresh)].prompt,
        hit=None if harm_in is None else lambda question, reply: harm_in(reply),
    )
    return Crafted((means.mixed(rows),), asking)


def _others(pool: Sequence[Exchange], taken: Sequence[Exchange]) -> Sequence[Exchange]:
    """Those that no row has; all of them where every one has been taken."""
    prompts = {exchange.prompt for exchange in taken}
    return [exchange for exchange in pool if exchange.prompt not in prompts] or pool


ATTACK = Attack(
    name="answers",
    paper="ours",
    summary="Harmful answers under harmless prompts, so that no prompt asks for harm.",
    options=AnswersOptions,
    craft=craft,
    needs=(Access.ASKING,),
)
