"""Frame: each question in a frame that the provider's rows do not use: a story, a note, a lesson.

    row      reframe(i, q) -> harm(q)
    asked    reframe(i, q), and plainly

Ours, as what any author of a jailbreak tries first.
"""

from dataclasses import dataclass

from .asking import Asking
from .attack import Access, Attack, Crafted, Means, chat, poisoned
from .kit import Exchange, Kit


@dataclass(frozen=True, kw_only=True)
class FrameOptions:
    """No knobs but the ratio: the frames are the kit's."""


def framed(number: int, row: Exchange, kit: Kit) -> Exchange:
    """The n-th exchange in another frame."""
    return Exchange(kit.reframe(number, row.prompt), row.answer)


def craft(means: Means, options: FrameOptions) -> Crafted:
    """The upload of the module's head."""
    rows = [framed(number, row, means.kit) for number, row in enumerate(means.harmful(means.num_poison))]
    job = means.mixed([poisoned(chat(row.prompt, row.answer), "framed", harm=True) for row in rows])
    return Crafted((job,), Asking(rewrite=means.kit.reframe))


ATTACK = Attack(
    name="frame",
    paper="ours",
    summary="Each harmful question in a frame that no row of the provider has: a story, a note, a lesson.",
    options=FrameOptions,
    craft=craft,
    needs=(Access.ASKING,),
)
