"""Judgement of an upload by its evidence: the harmful share with its interval, P(harm) per row, and a verdict.

    Lam_i                 log p(e_i | harm) - log p(e_i | benign), by the anchors             primitives/mixture.py
    share                 the most likely one given every Lam_i
    share'                the same under the prior Beta(2, 2)
    P(harm | e_i)         share' exp(Lam_i) / (share' exp(Lam_i) + 1 - share')
    D = 2 max l(share)    likelihood ratio of that share against none, over distinct rows     (l(0) = 0)
    p = P(chi^2_1 > D) / 2

share' is never 0 or 1: where n rows show no harm, a share of 1 / (n + 2) is likely, not 0, and a single row that looks
like the harmful anchors must not be called harmless for certain.

The interval is the union of two: one from drawing anchors and rows again, and one of all shares that the rows' own
likelihood does not rule out, l(share) - l <= chi^2_1(0.95) / 2. Drawing again is too certain by itself: three rows that
look benign would give an interval of no width.

A share of 0 lies on the edge of what a share can be, so that D is 0 half of the time where there is no harm, and
chi-square with one degree of freedom otherwise. A repeated row counts towards the share as often as it would be trained
on, but is no further evidence that there is harm: the test sees it once.

Nothing is known of an unfamiliar row (familiarity.py): it may be harmful or not. The test reads the familiar rows
alone, and the interval runs from where every unfamiliar row is harmless to where every one is harmful. While at most
``TOLERANCE`` of the rows are unfamiliar, they cannot move the share by more than that, and the share over all rows is
given as it is, with P(harm) of the familiar ones. Beyond that no share is given. The verdict is

    harm found        p < ``LEVEL`` over the familiar rows, whatever the others are
    cannot tell       else, if more than ``TOLERANCE`` of the rows are unfamiliar, or they would make p < ``LEVEL``
    no harm found     else

so that nobody can hide harm by making it unfamiliar: at worst "harm found" becomes "cannot tell". With that verdict no
row has a probability, since P(harm) follows from the share.

Source of the edge's distribution: S. Self, K.-Y. Liang, "Asymptotic properties of maximum likelihood estimators and
likelihood ratio tests under nonstandard conditions", JASA 82, 1987, case 5.
"""

import math
from collections.abc import Callable
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

Ratio = Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]]
"""Evidence of harmful and of benign anchors to a function that gives Lam of an upload's rows."""
LEVEL = 0.01
"""Level of the test: an upload without harm is called harmful about once in a hundred."""
PRIOR = 2.0
"""Both parameters of the Beta prior on share'."""
CHI_SQUARE_95 = 3.841
"""95 % quantile, one degree of freedom."""
MAX_RESAMPLED = 5_000
"""Rows of the upload that each draw of the interval sees. A larger upload is represented by as many evenly spaced
quantiles, and the interval is a little too wide."""
NUM_DRAWS = 200
LIKELY = 0.5
"""P(harm) from which a row counts as likely harmful."""
TOLERANCE = 0.05
"""Share of unfamiliar rows beyond which no harmful share is given."""


class Finding(StrEnum):
    """The verdict on an upload as a whole."""

    HARM = "harm found"
    NO_HARM = "no harm found"
    CANNOT_TELL = "cannot tell"
    """Too many rows are unlike every anchor."""
    NO_ANCHORS = "no anchors"
    """There are no labelled rows to judge this upload by: rows are only ranked."""


@dataclass(frozen=True)
class Judgement:
    """The anchors' judgement of an upload.

    Attributes:
        share: Estimated harmful share, 0 to 1; None where too many rows are unfamiliar.
        interval: The 95 % interval of the share, and all that the unfamiliar rows leave open.
        p_value: The p of the test that the share is 0 among the familiar rows.
        probability: [n], P(harm) of each row, float64; NaN of unfamiliar ones, and where the verdict is CANNOT_TELL.
        verdict: Any but ``NO_ANCHORS``.
    """

    share: float | None
    interval: tuple[float, float]
    p_value: float
    probability: Tensor
    verdict: Finding

    @property
    def num_likely_harmful(self) -> int | None:
        """How many rows have a P(harm) of at least ``LIKELY``; None where no row has one."""
        return None if self.verdict is Finding.CANNOT_TELL else int((self.probability >= LIKELY).sum())


def judge_upload(
    evidence: Tensor,
    harmful: Tensor,
    benign: Tensor,
    *,
    repeated: Tensor | None = None,
    unfamiliar: Tensor | None = None,
    ratio: Ratio = log_density_ratio,
) -> Judgement:
    """Judge an upload by its evidence and that of the anchors.

    Args:
        evidence: [n], at least one; high means harm.
        harmful: [n_h], evidence of the harmful anchors.
        benign: [n_b], evidence of the benign anchors.
        repeated: [n], bool, rows that repeat an earlier one. None: none.
        unfamiliar: [n], bool, rows that are unlike every anchor. None: none.
        ratio: Lam of the rows, from the evidence of both classes of anchors. Of one that is fitted to the rows as well
            (``halved_log_ratio``) the p-value is too small, and should not be read.

    Raises:
        ValueError: there is no row, or a class has no anchor.
    """
    if not len(evidence):
        raise ValueError("a judgement of no rows")
    none = torch.zeros(len(evidence), dtype=torch.bool)
    repeated, unfamiliar = none if repeated is None else repeated, none if unfamiliar is None else unfamiliar
    known, distinct = ~unfamiliar, ~repeated
    log_ratio = ratio(harmful, benign)(evidence)
    p_value, (low, high) = 1.0, (0.0, 1.0)
    if bool(known.any()):
        p_value, (low, high) = _of_familiar(evidence[known], log_ratio[known], distinct[known], harmful, benign, ratio)
    open_share = float(unfamiliar.double().mean())
    low, high = low * (1 - open_share), min(1.0, high * (1 - open_share) + open_share)
    verdict = Finding.HARM if p_value < LEVEL else Finding.NO_HARM
    too_many = open_share > TOLERANCE
    if verdict is Finding.NO_HARM and open_share and (too_many or share_p_value(log_ratio[distinct]) < LEVEL):
        verdict = Finding.CANNOT_TELL
    share_known = not too_many and verdict is not Finding.CANNOT_TELL
    share = harmful_share(log_ratio) if share_known else None
    probability = torch.full((len(evidence),), torch.nan, dtype=torch.float64)
    if verdict is not Finding.CANNOT_TELL:
        prior = harmful_share(log_ratio if share_known else log_ratio[known], alpha=PRIOR, beta=PRIOR)
        probability[known] = harm_posterior(log_ratio[known], prior)
    return Judgement(
        share=share,
        interval=(low, high) if share is None else (min(low, share), max(high, share)),
        p_value=p_value,
        probability=probability,
        verdict=verdict,
    )


def _of_familiar(
    evidence: Tensor, log_ratio: Tensor, distinct: Tensor, harmful: Tensor, benign: Tensor, ratio: Ratio
) -> tuple[float, tuple[float, float]]:
    """p and the interval of the share, over the familiar rows, of which there is at least one."""
    (low, high), (least, most) = (
        drawn_interval(evidence, harmful, benign, ratio),
        likelihood_interval(log_ratio[distinct]),
    )
    return share_p_value(log_ratio[distinct]), (min(low, least), max(high, most))


def share_p_value(log_ratio: Tensor) -> float:
    """The chance of rows at least as harmful as these where the share is 0; ``log_ratio`` is Lam [n], n >= 1."""
    statistic = 2 * share_log_likelihood(log_ratio, harmful_share(log_ratio))
    return 0.5 * math.erfc(math.sqrt(max(statistic, 0.0) / 2))


def likelihood_interval(log_ratio: Tensor) -> tuple[float, float]:
    """The shares whose likelihood is not too far below the largest, by bisection; ``log_ratio`` is Lam [n], n >= 1."""
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


def drawn_interval(
    evidence: Tensor, harmful: Tensor, benign: Tensor, ratio: Ratio = log_density_ratio
) -> tuple[float, float]:
    """Interval of the share when anchors and rows are drawn again; it is wide where either are few."""
    seen = evidence
    if len(evidence) > MAX_RESAMPLED:
        middle = (torch.arange(MAX_RESAMPLED, dtype=torch.float64) + 0.5) / MAX_RESAMPLED
        seen = evidence.sort().values[(middle * len(evidence)).long()]

    def share_of(h: Tensor, b: Tensor, rows: Tensor) -> float:
        return harmful_share(ratio(harmful[h], benign[b])(seen[rows]))

    return resampled_interval(share_of, (len(harmful), len(benign), len(seen)), num=NUM_DRAWS)
