"""From evidence to what screening says: the harmful share with its interval, P(harm) per row, and a verdict.

    Lam_i                 log p(e_i | harm) - log p(e_i | benign), by the anchors             primitives/mixture.py
    share                 the most likely one given every Lam_i
    share'                likewise, under the prior Beta(2, 2)
    P(harm | e_i)         share' exp(Lam_i) / (share' exp(Lam_i) + 1 - share')
    D = 2 max l(share)    likelihood ratio of that share against none, over distinct rows     (l(0) = 0)
    p = P(chi^2_1 > D) / 2

share' is neither 0 nor 1: that no harm shows in n rows makes a share of 1 / (n + 2) likely, not 0, and a row that looks
like the harmful anchors must not be called harmless for certain because it is alone.

The interval spans two: that of drawing anchors and rows anew, and all shares that the rows' own likelihood does not
rule out, l(share) - l <= chi^2_1(0.95) / 2. Drawing anew alone would be certain of itself where all rows look benign,
were there but three of them.

A share of 0 lies on the edge of what a share can be, so that D is 0 half of the time where there is no harm, and
chi-square with one degree of freedom otherwise. A row that is repeated counts towards the share as often as it would be
trained on, but is no further evidence that there is harm: the test sees it once.

Source of the edge's distribution: S. Self, K.-Y. Liang, "Asymptotic properties of maximum likelihood estimators and
likelihood ratio tests under nonstandard conditions", JASA 82, 1987, case 5.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from ..primitives.mixture import (
    harm_posterior,
    harmful_share,
    log_density_ratio,
    resampled_interval,
    share_log_likelihood,
)

LEVEL = 0.01
"""Of the test: an upload without harm is called harmful about once in a hundred."""
PRIOR = 2.0
"""Both parameters of the Beta prior on share'."""
CHI_SQUARE_95 = 3.841
"""95 % quantile, one degree of freedom."""
MAX_RESAMPLED = 5_000
"""Rows of the upload that each draw of the interval sees. Of more, as many evenly spaced quantiles stand for all, and
the interval is a little too wide."""
NUM_DRAWS = 200


class Verdict(StrEnum):
    """What screening says of an upload as a whole."""

    HARM = "harm found"
    NO_HARM = "no harm found"
    NO_ANCHORS = "no anchors"
    """There are no labelled rows to judge this upload by: rows are ranked, and that is all."""


@dataclass(frozen=True)
class Judgement:
    """What the anchors make of an upload's evidence.

    Attributes:
        share: Estimated harmful share, 0 to 1.
        interval: 95 %.
        p_value: Of the test that the share is 0.
        probability: [n], P(harm) of each row, float64.
        verdict: ``HARM`` or ``NO_HARM``.
    """

    share: float
    interval: tuple[float, float]
    p_value: float
    probability: Tensor
    verdict: Verdict


def judge_upload(evidence: Tensor, harmful: Tensor, benign: Tensor, *, repeated: Tensor | None = None) -> Judgement:
    """The anchors' judgement of an upload.

    Args:
        evidence: [n], at least one; high means harm.
        harmful: [n_h], the same of the harmful anchors.
        benign: [n_b].
        repeated: [n], bool: rows that stand earlier in the upload already. None: none.

    Raises:
        ValueError: there is no row, or a class has no anchor.
    """
    if not len(evidence):
        raise ValueError("a judgement of no rows")
    log_ratio = log_density_ratio(harmful, benign)(evidence)
    share = harmful_share(log_ratio)
    distinct = log_ratio if repeated is None else log_ratio[~repeated]
    p_value = share_p_value(distinct)
    (low, high), (least, most) = drawn_interval(evidence, harmful, benign), likelihood_interval(distinct)
    return Judgement(
        share=share,
        interval=(min(low, least, share), max(high, most, share)),
        p_value=p_value,
        probability=harm_posterior(log_ratio, harmful_share(log_ratio, alpha=PRIOR, beta=PRIOR)),
        verdict=Verdict.HARM if p_value < LEVEL else Verdict.NO_HARM,
    )


def share_p_value(log_ratio: Tensor) -> float:
    """The chance of rows at least as harmful as these where the share is 0; Lam [n], at least one."""
    statistic = 2 * share_log_likelihood(log_ratio, harmful_share(log_ratio))
    return 0.5 * math.erfc(math.sqrt(max(statistic, 0.0) / 2))


def likelihood_interval(log_ratio: Tensor) -> tuple[float, float]:
    """The shares whose likelihood is not too far below the largest, by bisection; Lam [n], at least one."""
    best = harmful_share(log_ratio)
    floor = share_log_likelihood(log_ratio, best) - CHI_SQUARE_95 / 2

    def edge(inside: float, outside: float) -> float:
        if share_log_likelihood(log_ratio, outside) >= floor:
            return outside
        for _ in range(30):
            middle = (inside + outside) / 2
            if share_log_likelihood(log_ratio, middle) >= floor:
                inside = middle
            else:
                outside = middle
        return outside

    return edge(best, 0.0), edge(best, 1.0)


def drawn_interval(evidence: Tensor, harmful: Tensor, benign: Tensor) -> tuple[float, float]:
    """The share when anchors and rows are drawn anew: that both are few counts in it."""
    seen = evidence
    if len(evidence) > MAX_RESAMPLED:
        middle = (torch.arange(MAX_RESAMPLED, dtype=torch.float64) + 0.5) / MAX_RESAMPLED
        seen = evidence.sort().values[(middle * len(evidence)).long()]

    def share_of(h: Tensor, b: Tensor, rows: Tensor) -> float:
        return harmful_share(log_density_ratio(harmful[h], benign[b])(seen[rows]))

    return resampled_interval(share_of, (len(harmful), len(benign), len(seen)), num=NUM_DRAWS)
