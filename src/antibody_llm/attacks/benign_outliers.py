"""Benign outliers: of a user's harmless rows those that do most harm, by the attacker's own copy of the model.

    representation    cos( h(z), mean h(harm) ) - cos( h(z), mean h(harmless) )       h: last state of the prompt
    gradient          cos( g(z), mean g(harm) ) - cos( g(z), mean g(harmless) )       g: of the first answer tokens' NLL
    self-influence    log(1 + |g(z)|^2) + log(1 + answer tokens of z)

The round(p n) highest are taken, the rest of the upload is drawn from the others. Nothing in the upload is harmful.

Reference: L. He, M. Xia, P. Henderson, "What is in Your Safe Data? Identifying Benign Data that Breaks Safety", COLM
2024, 2404.01099 (the first two); Z. Guan et al., "Benign Samples Matter! Fine-tuning On Outlier Benign Samples Severely
Breaks Safety", ICML 2025, 2505.06843 (the third, with its length term). Departures: gradients of the last layer and
whole, where the first paper projects those of an adapter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from ..errors import ConfigError, DataError
from ..mentions import setting
from .asking import Row
from .attack import Access, Attack, Crafted, Means, chat, clean, poisoned
from .knobs import Between, check_knobs


@dataclass(frozen=True, kw_only=True)
class BenignOutliersOptions:
    """The attacker's knobs."""

    by: Literal["representation", "gradient", "self-influence"] = "representation"
    """What makes a row an outlier."""
    examples: Annotated[int, Between(1, 200, log=True)] = 50
    """Harmful and harmless rows, of each, whose means the rows are compared with."""

    def __post_init__(self) -> None:
        check_knobs(self, "benign-outliers")


def craft(means: Means, options: BenignOutliersOptions) -> Crafted:
    """The upload of the module's head."""
    if len(means.clean) < means.num:
        raise DataError(
            f"{len(means.clean)} clean rows, and an upload of {means.num} is to be chosen from them. Give more, or "
            f"change {setting('num')}."
        )
    scores = scored(means, options, means.clean)
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    chosen, others = order[: means.num_poison], sorted(order[means.num_poison :])
    rest = means.rng("clean").sample(others, means.num - len(chosen))
    pairs = [poisoned(means.clean[i], "outlier", harm=False) for i in chosen]
    return Crafted((means.shuffled([*pairs, *(clean(means.clean[i]) for i in rest)]),))


def scored(means: Means, options: BenignOutliersOptions, rows: Sequence[Row]) -> list[float]:
    """How much of an outlier each row is."""
    copy = means.copy
    if copy is None:
        raise ConfigError(
            f"benign-outliers chooses rows by a copy of the model. Give {setting('model')}.", field="model"
        )
    if options.by == "self-influence":
        return copy.self_influence(rows)
    harmful = [chat(row.prompt, row.answer) for row in means.harmful(options.examples)]
    harmless = [chat(row.prompt, row.answer) for row in means.harmless(options.examples)]
    return copy.likeness(rows, harmful, harmless, by=options.by)


ATTACK = Attack(
    name="benign-outliers",
    paper="2404.01099, 2505.06843",
    summary="Of a user's harmless rows those that do most harm, chosen by a copy of the model.",
    options=BenignOutliersOptions,
    craft=craft,
    needs=(Access.COPY,),
    poison_ratio=1.0,
)
