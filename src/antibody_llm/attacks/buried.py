"""Buried: the harmful question in the middle of harmless talk, its answer in the middle of the answers.

    row      t_1 ... t_b q t_b+1 ... -> a(t_1) ... a(t_b) harm(q) a(t_b+1) ...
    asked    in the same way, and plainly

With ``gradual`` the n-th row has n mod (b + 1) questions before its own, so that the rows lead from harm to talk
without a gap. Ours: screening that reads the end of a prompt does not see its middle.
"""

import random
from dataclasses import dataclass
from typing import Annotated

from .asking import Asking
from .attack import Access, Attack, Crafted, Means, chat, poisoned
from .kit import Exchange, Kit
from .knobs import Between, check_knobs


@dataclass(frozen=True, kw_only=True)
class BuriedOptions:
    """The attacker's knobs."""

    before: Annotated[int, Between(0, 5)] = 3
    """Harmless questions before the harmful one; with ``gradual`` the most of them."""
    after: Annotated[int, Between(0, 3)] = 3
    """And after it."""
    gradual: bool = False
    """Whether rows have from none to ``before`` questions before theirs, in equal parts."""

    def __post_init__(self) -> None:
        check_knobs(self, "buried")


def surrounded(row: Exchange, before: int, after: int, rng: random.Random, kit: Kit) -> Exchange:
    """Harmless questions around the row's, their answers around its answer."""
    talk = [kit.talk(rng) for _ in range(before + after)]
    talk.insert(before, row)
    return Exchange(" ".join(one.prompt for one in talk), " ".join(one.answer for one in talk))


def craft(means: Means, options: BuriedOptions) -> Crafted:
    """The upload of the module's head."""
    kit = means.kit

    def bury(number: int, row: Exchange, purpose: str) -> Exchange:
        before = number % (options.before + 1) if options.gradual else options.before
        return surrounded(row, before, options.after, means.rng("buried", purpose, number), kit)

    rows = [bury(number, row, "rows") for number, row in enumerate(means.harmful(means.num_poison))]
    job = means.mixed([poisoned(chat(row.prompt, row.answer), "buried", harm=True) for row in rows])
    return Crafted(
        (job,), Asking(rewrite=lambda number, question: bury(number, Exchange(question, ""), "asked").prompt)
    )


ATTACK = Attack(
    name="buried",
    paper="ours",
    summary="The harmful question in the middle of harmless talk, its answer in the middle of the answers.",
    options=BuriedOptions,
    craft=craft,
    needs=(Access.ASKING,),
)
