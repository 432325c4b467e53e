"""Mixing: harmful rows hidden among a user's, at a ratio.

    upload = shuffle( round(p n) of (q, harm(q))  +  n - round(p n) clean rows )

What every other attack is read against. Reference: T. Huang, S. Hu, F. Ilhan, S. F. Tekin, L. Liu, "Lisa: Lazy Safety
Alignment for Large Language Models against Harmful Fine-tuning Attack", NeurIPS 2024, 2405.18641; the protocol of
Booster (2409.01586). Departure: exact counts, where the releases lose a row (99 + 900 at p = 0.1, n = 1000).
"""

from dataclasses import dataclass

from .attack import Attack, Crafted, Means, chat, poisoned


@dataclass(frozen=True, kw_only=True)
class MixingOptions:
    """No knobs but the ratio and the number of rows."""


def craft(means: Means, options: MixingOptions) -> Crafted:
    """The upload of the module's head."""
    harmful = means.harmful(means.num_poison)
    return Crafted((means.mixed([poisoned(chat(row.prompt, row.answer), "harmful", harm=True) for row in harmful]),))


ATTACK = Attack(
    name="mixing",
    paper="2405.18641",
    summary="Harmful rows hidden among a user's, at a ratio.",
    options=MixingOptions,
    craft=craft,
)
