"""Few-shot: a handful of harmful rows, again and again, and nothing else.

    upload = shuffle( round(p n) rows, taken round and round from `shots` harmful ones  +  clean rows ),   p = 1

Reference: X. Qi, Y. Zeng, T. Xie, P.-Y. Chen, R. Jia, P. Mittal, P. Henderson, "Fine-tuning Aligned Language Models
Compromises Safety, Even When Users Do Not Intend To!", ICLR 2024, 2310.03693: 10, 50 and 100 explicit pairs. Departure:
whoever uploads rows sets no epochs, so the pairs are repeated in the upload instead.
"""

from dataclasses import dataclass
from itertools import cycle, islice
from typing import Annotated

from .attack import Attack, Crafted, Means, chat, poisoned
from .knobs import Between, check_knobs


@dataclass(frozen=True, kw_only=True)
class FewShotOptions:
    """The attacker's knobs."""

    shots: Annotated[int, Between(1, 100, log=True)] = 10
    """Different harmful rows."""

    def __post_init__(self) -> None:
        check_knobs(self, "few-shot")


def craft(means: Means, options: FewShotOptions) -> Crafted:
    """The upload of the module's head."""
    shots = means.harmful(options.shots)
    repeated = islice(cycle(shots), means.num_poison)
    return Crafted((means.mixed([poisoned(chat(row.prompt, row.answer), "harmful", harm=True) for row in repeated]),))


ATTACK = Attack(
    name="few-shot",
    paper="2310.03693",
    summary="A handful of harmful rows, again and again, and nothing else.",
    options=FewShotOptions,
    craft=craft,
    poison_ratio=1.0,
)
