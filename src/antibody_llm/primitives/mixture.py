"""An upload as a mixture of harmful and benign rows whose two densities are anchored by labelled scores.

    Lam(e)     log p(e | harm) - log p(e | benign) = b + <a, e>      logistic regression on the labelled scores
    pi         argmax  sum_i log(pi exp Lam_i + 1 - pi) + log Beta(pi; alpha, beta)      the harmful share; concave
    P(harm|e)  pi exp Lam / (pi exp Lam + 1 - pi)

Nothing but the share is learnt from the unlabelled rows, so that two unlike benign clusters are not taken for harm and
benign, nor an upload that is all harm for one that is all benign. ``Lam`` is monotone in every score: a row that lies
beyond the labelled ones is never pulled back by a density's tail.

Sources: estimating class shares under fixed class densities, M. Saerens, P. Latinne, C. Decaestecker, "Adjusting the
outputs of a classifier to new a priori probabilities", Neural Computation 14, 2002 (their EM and this search have the
same maximum); the slope's prior against perfect separation, as in J. Platt, "Probabilistic outputs for support vector
machines", 1999.

``unexpected`` lowers P(harm|e) where e is on the benign side, Lam(e) < 0, and the upload has more rows there than the
labelled ones lead to expect:

    P(harm|e) * min(1, (n m(e) + 1) / n_e)        n_e   rows at e, by a Gaussian kernel that counts a row itself as 1
    m(e) = pi f_h(e) + (1 - pi) f_b(e)            the share of rows expected there; f_h = f_b exp Lam, each of them
                                                  what the labelled rows of either class say, whichever is more

Harm is what the labelled rows say, as often as pi says; a crowd beyond that is a task that they do not have. Lam alone,
which is never steep where few labelled rows are, would call it harm with a probability that adds up over the crowd. A
row that is alone, a crowd where harm is expected, and whatever is nearer to harm keep theirs.

``halved_log_ratio`` allows for an upload whose rows of a class are easier or harder to tell than the labelled ones: of
each class the lower and the upper half are two densities, and their parts in the upload are learnt from it too.

    p_k(e)   density of the k-th half of the labelled scores, Gaussian kernels of one width
    v        argmax sum_i log(sum_k v_k p_k(e_i)), sum_k v_k = 1, k over the four halves              concave
    Lam(e)   log sum_harm v_k p_k / sum_harm v_k - log sum_benign v_k p_k / sum_benign v_k, where the share of harm is
             sum_harm v_k; made to rise with e, from midway between the medians on: further up is never less harmful

v is found by the EM of Saerens et al. Where no row looks to be of a class, its halves count equally. Where the lower
half of harm and the upper half of benign read alike (AUROC below ``MIN_APART``), nobody could say which of the two a
row is of, and Lam is that of all labelled scores, as above.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .density import interpolated, kernel_counts, kernel_width, log_density
from .statistics import auroc

SLOPE_SPREAD = 3.0
"""Standard deviation of the Gaussian prior on each slope, in units of 1 / (standard deviation of the score)."""
MIN_APART = 0.8
MAX_COUNTED = 5_000
"""Scores of an upload that are counted; of a larger one as many evenly spaced quantiles are, each for several rows."""
_NEWTON_STEPS = 100
_EM_STEPS = 500
_SETTLED = 1e-7
_GRID = 1024
_ROWS_AT_ONCE = 4_096
_MOST_NATS = 500.0
"""Lam beyond this is taken for it, so that no density overflows."""
_BISECTIONS = 50  # one more would round to 0 or 1


@dataclass(frozen=True, slots=True)
class LogRatio:
    """Lam(e) = bias + <slope, e>; float64.

    Attributes:
        slope: [d].
        bias: The bias for classes of equal weight, whatever the number of labelled rows of each.
    """

    slope: Tensor
    bias: float

    def __call__(self, scores: Tensor) -> Tensor:
        """[n], nats, of scores [n, d] or, for one score, [n]."""
        return scores.double().reshape(len(scores), -1) @ self.slope + self.bias


def log_density_ratio(harmful: Tensor, benign: Tensor, *, spread: float = SLOPE_SPREAD) -> LogRatio:
    """Logistic regression on labelled scores, both classes of equal total weight, by Newton's method.

    Args:
        harmful: [n_h, d], or [n_h] for one score.
        benign: [n_b, d], or [n_b].
        spread: See ``SLOPE_SPREAD``.

    Raises:
        ValueError: a class is empty, or a score is not finite or the same for all.
    """
    if not len(harmful) or not len(benign):
        raise ValueError("both classes need at least one labelled row")
    scores = torch.cat([harmful, benign]).double().reshape(len(harmful) + len(benign), -1)
    mean, scale = scores.mean(dim=0), scores.std(dim=0, correction=0)
    if not bool(torch.isfinite(scores).all()) or not bool((scale > 0).all()):
        raise ValueError("a score is not finite, or the same for all labelled rows")
    num, num_harmful = len(scores), len(harmful)
    x = torch.cat([(scores - mean) / scale, torch.ones(num, 1, dtype=torch.float64)], dim=1)
    y = torch.zeros(num, dtype=torch.float64)
    y[:num_harmful] = 1.0
    weight = torch.full((num,), 0.5 * num / (num - num_harmful), dtype=torch.float64)
    weight[:num_harmful] = 0.5 * num / num_harmful
    ridge = torch.full((x.shape[1],), spread**-2, dtype=torch.float64)
    ridge[-1] = 0.0  # the bias is free
    w = torch.zeros(x.shape[1], dtype=torch.float64)

    def objective(w: Tensor) -> float:
        margin = (x @ w) * (2 * y - 1)
        return float(-(weight * torch.nn.functional.logsigmoid(margin)).sum() + 0.5 * (ridge * w * w).sum())

    for _ in range(_NEWTON_STEPS):
        p = torch.sigmoid(x @ w)
        slope = x.T @ (weight * (p - y)) + ridge * w
        curvature = (x.T * (weight * p * (1 - p))) @ x + torch.diag(ridge) + 1e-12 * torch.eye(len(w))
        move = torch.linalg.solve(curvature, slope)
        length = 1.0
        while objective(w - length * move) > objective(w) and length > 1e-6:
            length /= 2
        w = w - length * move
        if float(move.abs().max()) < 1e-10:
            break
    slope = w[:-1] / scale
    return LogRatio(slope, float(w[-1] - (slope * mean).sum()))


def halved_log_ratio(harmful: Tensor, benign: Tensor) -> Callable[[Tensor], Tensor]:
    """Lam of an upload from its scores, [n] to [n], by the halves of either class; see the head of this file.

    Args:
        harmful: [n_h], at least two.
        benign: [n_b], at least two.

    Raises:
        ValueError: a class has less than two, or a score is not finite or the same for all.
    """
    if min(len(harmful), len(benign)) < 2:
        raise ValueError("both classes need at least two labelled rows")
    labelled = torch.cat([harmful, benign]).double()
    if not bool(torch.isfinite(labelled).all()) or not bool(labelled.std() > 0):
        raise ValueError("a score is not finite, or the same for all labelled rows")
    halves = [half for side in (harmful, benign) for half in side.double().sort().values.chunk(2)]
    if auroc(halves[3], halves[0]) < MIN_APART:
        return log_density_ratio(harmful, benign)
    midway = float(harmful.double().median() + benign.double().median()) / 2
    width = min(kernel_width(side.double()) for side in (harmful, benign))

    def log_ratio(scores: Tensor) -> Tensor:
        scores = scores.double()
        _require_finite(scores)
        everywhere = torch.cat([scores, labelled])
        grid = torch.linspace(float(everywhere.min()), float(everywhere.max()), _GRID, dtype=torch.float64)
        middle = int(torch.searchsorted(grid, midway))
        on_grid = torch.stack([log_density(half, grid, width) for half in halves])
        parts = _shares(interpolated(grid, on_grid, scores))
        ratio = _mixed(on_grid[:2], parts[:2]) - _mixed(on_grid[2:], parts[2:])
        falling, rising = ratio[:middle].flip(0).cummin(dim=0).values.flip(0), ratio[middle:].cummax(dim=0).values
        return interpolated(grid, torch.cat([falling, rising]), scores)

    return log_ratio


def _mixed(log_densities: Tensor, parts: Tensor) -> Tensor:
    """The log-density of a mixture: [n], of [K, n] and its parts [K] of any sum; of no part, that of equal ones."""
    parts = parts / parts.sum() if float(parts.sum()) > _SETTLED else torch.full_like(parts, 1 / len(parts))
    return torch.logsumexp(log_densities + parts.log()[:, None], dim=0)


def _shares(log_densities: Tensor) -> Tensor:
    """v: the most likely parts [K] of a mixture of fixed densities [K, n], by EM from equal ones."""
    parts = torch.full((len(log_densities),), 1 / len(log_densities), dtype=torch.float64)
    for _ in range(_EM_STEPS):
        new = torch.softmax(log_densities + parts.log()[:, None], dim=0).mean(dim=1)
        moved, parts = float((new - parts).abs().max()), new
        if moved < _SETTLED:
            break
    return parts


def harmful_share(log_ratio: Tensor, *, alpha: float = 1.0, beta: float = 1.0) -> float:
    """pi, the most likely share of harmful rows, 0 to 1; by bisection on the derivative, which falls throughout.

    Args:
        log_ratio: Lam of the unlabelled rows, [n], at least one.
        alpha: First parameter of a Beta prior on the share, at least 1; with beta 1 the prior says nothing.
        beta: Second parameter of that prior, at least 1; infinite says that there is no harm.

    Raises:
        ValueError: there is no row, or one's ratio is not finite: one NaN would make the share of all rows 0.
    """
    if not len(log_ratio):
        raise ValueError("a share of no rows")
    _require_finite(log_ratio)
    if math.isinf(beta):
        return 0.0
    ratio = log_ratio.double()

    def rises(pi: float) -> bool:
        # d/dpi log(pi e^Lam + 1 - pi) = (e^Lam - 1) / (pi e^Lam + 1 - pi), written without overflow on either side.
        shrunk = torch.exp(-ratio.abs())
        above = (1 - shrunk) / (pi + (1 - pi) * shrunk)
        below = (shrunk - 1) / (pi * shrunk + 1 - pi)
        derivative = float(torch.where(ratio > 0, above, below).sum())
        return derivative + (alpha - 1) / pi - (beta - 1) / (1 - pi) > 0

    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if rises(middle) else (low, middle)
    edge = 1e-14
    return 0.0 if high < edge else 1.0 if low > 1 - edge else (low + high) / 2


def harm_posterior(log_ratio: Tensor, share: float) -> Tensor:
    """P(harm | e): [n], 0 to 1, float64.

    Raises:
        ValueError: a ratio is not finite.
    """
    _require_finite(log_ratio)
    if share in (0.0, 1.0):
        return torch.full_like(log_ratio, share, dtype=torch.float64)
    return torch.sigmoid(log_ratio.double() + math.log(share / (1 - share)))


def unexpected(scores: Tensor, share: float, ratio: LogRatio, harmful: Tensor, benign: Tensor) -> Tensor:
    """min(1, (n m(e) + 1) / n_e) of every row on the benign side, 1 of others: [n], float64; the head of this file.

    Args:
        scores: e of the unlabelled rows, [n].
        share: pi.
        ratio: Lam.
        harmful: e of the labelled harmful rows, at least two.
        benign: e of the labelled benign rows, at least two.
    """
    scores, harmful, benign = scores.double(), harmful.double(), benign.double()
    width = max(kernel_width(harmful), kernel_width(benign))
    counted, each = scores, 1.0
    if len(scores) > MAX_COUNTED:
        middle = (torch.arange(MAX_COUNTED, dtype=torch.float64) + 0.5) / MAX_COUNTED
        counted, each = scores.sort().values[(middle * len(scores)).long()], len(scores) / MAX_COUNTED
    factors = []
    for some in scores.split(_ROWS_AT_ONCE):
        at_harm, at_benign = (kernel_counts(side, some, width) / len(side) for side in (harmful, benign))
        log_ratio = ratio(some).clamp(-_MOST_NATS, _MOST_NATS)
        tilt = log_ratio.exp()
        expected = share * torch.maximum(at_harm, at_benign * tilt)
        expected += (1 - share) * torch.maximum(at_benign, at_harm / tilt)
        present = each * kernel_counts(counted, some, width)
        factor = ((len(scores) * expected + 1) / present.clamp(min=1)).clamp(max=1)
        factors.append(torch.where(log_ratio < 0, factor, 1.0))
    return torch.cat(factors)


def _require_finite(log_ratio: Tensor) -> None:
    if not bool(torch.isfinite(log_ratio).all()):
        raise ValueError("a row's log-ratio is not finite")


def share_log_likelihood(log_ratio: Tensor, share: float) -> float:
    """sum_i log(share exp Lam_i + 1 - share), nats: 0 at share 0."""
    if share == 0.0:
        return 0.0
    ratio = log_ratio.double()
    rest = math.log1p(-share) if share < 1 else -math.inf
    return float(torch.logaddexp(ratio + math.log(share), torch.full_like(ratio, rest)).sum())


def resampled_interval(
    share_of: Callable[[Tensor, Tensor, Tensor], float], sizes: tuple[int, int, int], *, num: int = 200, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of a share: labelled and unlabelled rows are drawn again, each with replacement.

    Args:
        share_of: Indices of harmful, of benign and of unlabelled rows to a share.
        sizes: How many there are of each.
        num: Number of resamples.
        seed: Seed of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    shares = [share_of(*(torch.randint(size, (size,), generator=generator) for size in sizes)) for _ in range(num)]
    low, high = torch.quantile(torch.tensor(shares, dtype=torch.float64), torch.tensor([0.025, 0.975]).double())
    return float(low), float(high)
