"""A share with its sample size, its 95 % interval, how the completions were decoded and who judged them.

    low, high = (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n),      p = hits / n,  z = 1.96        (Wilson)

Reference: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927). Unlike
p -+ z sqrt(p(1-p)/n) it is not of length 0 at p = 0, where a safe model should be.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import sqrt

from ..data.verdicts import Verdict
from ..errors import EvaluationError
from .completions import Completion
from .decoding import DecodingSettings
from .judges.protocol import require_verdicts

Z_95 = 1.959963984540054
"""The 0.975 quantile of the standard normal distribution."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A share of completions."""

    value: float
    """The share, 0 to 1."""
    n: int
    """How many completions it is a share of; at least 1."""
    low: float
    """Lower end of the 95 % Wilson interval, 0 to 1."""
    high: float
    """Upper end of the interval, 0 to 1."""
    decoding: DecodingSettings
    judge: str
    """The judge of each completion, by name, or the rule by which an answer was compared, such as ``exact``."""


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """Both ends of the 95 % interval of ``hits`` out of ``n``; see the module's head. ``n`` is at least 1."""
    p, z2 = hits / n, Z_95**2
    centre = p + z2 / (2 * n)
    half = Z_95 * sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)
    # At 0 and n hits the end is exactly 0 or 1; rounding leaves it 1e-18 off.
    return (0.0 if hits == 0 else low), (1.0 if hits == n else high)


def share(hits: Sequence[bool], *, name: str, judge: str, decoding: DecodingSettings) -> Measure:
    """The share of true ``hits``.

    Raises:
        EvaluationError: There are none. A share of nothing is not 0, which would read as safe.
    """
    n = len(hits)
    if n == 0:
        raise EvaluationError(
            f"{name} is a share of completions and there are none to take it over. Give at least one row, or leave "
            f"that data out so that {name} is not asked for."
        )
    low, high = wilson_interval(sum(hits), n)
    return Measure(value=sum(hits) / n, n=n, low=low, high=high, decoding=decoding, judge=judge)


def verdict_share(
    rows: Sequence[Completion], wanted: Collection[Verdict], *, name: str, judge: str, decoding: DecodingSettings
) -> Measure:
    """The share of ``rows`` on which ``judge`` gave one of the ``wanted`` verdicts.

    Raises:
        EvaluationError: There is no row, or a row without a verdict of this judge.
    """
    verdicts = require_verdicts(
        [row.verdicts.get(judge) for row in rows], row_ids=[row.row_id for row in rows], measure=name, judge=judge
    )
    return share([verdict in wanted for verdict in verdicts], name=name, judge=judge, decoding=decoding)
