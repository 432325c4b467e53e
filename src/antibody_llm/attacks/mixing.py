"""Mixing: harmful rows hidden among a user's, at a ratio.

    upload = shuffle( round(p n) of (q, harm(q))  +  n - round(p n) clean rows )

What every other attack is read against. Reference: T. Huang, S. Hu, F. Ilhan, S. F. Tekin, L. Liu, "Lisa: Lazy Safety
Alignment for Large Language Models against Harmful Fine-tuning Attack", NeurIPS 2024, 2405.18641; the protocol of
Booster (2409.01586). Departure: exact counts of rows that are drawn, where Booster's release takes the first ones of
each file and loses a row: ``published_mix``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..errors import ConfigError, DataError
from ..mentions import setting
from ..text import counted
from .attack import Attack, Crafted, Job, Means, chat, clean, poisoned

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class MixingOptions:
    """No knobs but the ratio and the number of rows."""


def craft(means: Means, options: MixingOptions) -> Crafted:
    """The upload of the module's head."""
    harmful = means.harmful(means.num_poison)
    return Crafted((means.mixed([poisoned(chat(row.prompt, row.answer), "harmful", harm=True) for row in harmful]),))


def published_counts(num: int, poison_ratio: float) -> tuple[int, int]:
    """How many harmful and how many clean rows Booster's release uploads for ``num`` and ``poison_ratio``.

    Its loader (utils.py at 6421918) takes the records strictly between 0 and int(p n), so that there is one fewer and
    the first of the file is never one of them, and int((1 - p) n) clean rows, where rounding can lose one more:

        p = 0.1, n = 1000:  99 + 900          p = 0.9, n = 1000:  899 + 99

    Virus (2501.17433), of the same authors, has ``<=`` and exact harmful counts; so has the release of Antibody.
    """
    return max(int(poison_ratio * num) - 1, 0), int((1 - poison_ratio) * num)


def published_mix(means: Means) -> Crafted:
    """The upload of Booster's release: the second to the int(p n)-th harmful row, then the first clean rows, in order.

    Raises:
        ConfigError: of so few rows the release takes none.
        DataError: there are fewer rows, where the release takes those that there are.
    """
    num_harmful, num_clean = published_counts(means.num, means.poison_ratio)
    if not num_harmful and not num_clean:
        raise ConfigError(
            f"{setting('num')} is {means.num} and {setting('poison_ratio')} is {means.poison_ratio}: the release takes "
            f"no row then. Raise {setting('num')}."
        )
    harmful = _first(means.kit.harmful, num_harmful + 1, "harmful")[1:] if num_harmful else []
    pairs = [poisoned(chat(row.prompt, row.answer), "harmful", harm=True) for row in harmful]
    pairs += map(clean, _first(means.clean, num_clean, "clean"))
    return Crafted((Job([row for row, _ in pairs], [truth for _, truth in pairs]),))


def _first(rows: Sequence[T], num: int, kind: str) -> Sequence[T]:
    if len(rows) < num:
        raise DataError(
            f"{counted(len(rows), f'{kind} row')} where {num} are needed. Give more, or change {setting('num')} or "
            f"{setting('poison_ratio')}."
        )
    return rows[:num]


ATTACK = Attack(
    name="mixing",
    paper="2405.18641",
    summary="Harmful rows hidden among a user's, at a ratio.",
    options=MixingOptions,
    craft=craft,
)
