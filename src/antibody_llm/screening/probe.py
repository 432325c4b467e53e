"""Directions in the hidden states along which harmful and harmless rows lie apart, fitted to labelled rows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ModelError
from ..mentions import setting
from .states import normalised

SHRINKAGE = 0.05
"""s, the shrinkage of Fisher's discriminant."""
FOLDS = 8
TINY = 1e-12


@dataclass(frozen=True)
class Probe:
    """One direction per layer in the hidden states, for each of two measures.

    Attributes:
        shift: [L, D]: v_l. L counts decoder layers, D is the hidden size.
        offset: The mean of the benign rows along ``shift``.
        state: [L, D]: u_l at the one layer chosen, zero elsewhere.
    """

    shift: Tensor
    offset: float
    state: Tensor

    def read(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Projections of states [B, L, D] on ``shift`` (normalised) and on ``state``: [B] each."""
        shift, state = self.shift.to(hidden), self.state.to(hidden)
        return (normalised(hidden) * shift).sum(dim=(1, 2)), (hidden * state).sum(dim=(1, 2))


def fit_probe(now: Tensor, before: Tensor, num_harmful: int) -> Probe:
    """Fit the directions to the hidden states of labelled rows.

    Half of feature-shift is Fisher's discriminant, which separates what is like the anchors (harmful prompts and
    look-alikes of them), and half the difference of means, which reads prompts unlike any anchor (noise, odd formats)
    as benign more reliably; each alone measured worse (docs/antibody-posterior.md).

    Args:
        now: [rows, L, D], states of the aligned model, harmful rows first.
        before: [rows, L, D], states of the model before its alignment.
        num_harmful: How many rows are harmful.

    Raises:
        ModelError: the two models are the same.
    """
    change = normalised(now) - normalised(before)
    if not float(change.abs().max()) > 0:
        raise ModelError(
            "the aligned model and the one before it read the anchors alike: nothing was aligned, or "
            f"{setting('base')} names the aligned model itself."
        )
    shift = (_mean_difference(change, num_harmful) + _fisher(change, num_harmful)) / 2
    offset = (change[num_harmful:].mean(dim=0) * shift).sum()

    mean_state = now[:num_harmful].mean(dim=0) - now[num_harmful:].mean(dim=0)
    at_harm, at_benign, spread = _means_and_spread((now * mean_state).sum(dim=-1), num_harmful)
    best = int(((at_harm - at_benign) / spread).argmax())
    state = torch.zeros_like(mean_state)
    state[best] = mean_state[best]
    return Probe(shift, float(offset), state)


def _mean_difference(change: Tensor, num_harmful: int) -> Tensor:
    """Difference of means, layers weighted by the square of (difference / spread): [L, D]; 1 between the means."""
    direction = change[:num_harmful].mean(dim=0) - change[num_harmful:].mean(dim=0)
    at_harm, at_benign, spread = _means_and_spread((change * direction).sum(dim=-1), num_harmful)  # [L] each
    apart = at_harm - at_benign
    weight = (apart / spread).square()
    scale = weight / weight.sum().clamp(min=TINY) / apart.clamp(min=TINY)
    return direction * scale[:, None]


def _fisher(change: Tensor, num_harmful: int) -> Tensor:
    """Fisher's discriminant, S^-1 (difference of means): [L, D]; 1 between the means.

    S = (1 - s) X'X / n + s m I is the pooled covariance, shrunk; m is the mean variance. It is inverted in the space of
    rows (Woodbury), however large L D is.
    """
    flat = change.flatten(1).double()
    harm, benign = flat[:num_harmful], flat[num_harmful:]
    difference = harm.mean(dim=0) - benign.mean(dim=0)
    x = torch.cat([harm - harm.mean(dim=0), benign - benign.mean(dim=0)])
    num = len(x) - 2
    ridge = SHRINKAGE * x.square().sum() / num / x.shape[1] + TINY
    gram = x @ x.T + num * ridge / (1 - SHRINKAGE) * torch.eye(len(x), dtype=x.dtype)
    direction = difference - x.T @ torch.linalg.solve(gram, x @ difference)
    apart = (direction * difference).sum()
    scaled: Tensor = direction / apart.clamp(min=TINY)
    return scaled.float().view(change.shape[1:])


def held_out_shifts(now: Tensor, before: Tensor, num_harmful: int) -> Tensor:
    """Feature-shift of each labelled row by a probe that was fitted without it, ``FOLDS``-fold: [rows].

    A probe looks better than it is on the rows that it was fitted to.
    """
    place = torch.cat([torch.arange(num_harmful), torch.arange(len(now) - num_harmful)]) % FOLDS
    change = normalised(now) - normalised(before)
    shifts = torch.empty(len(now))
    for fold in range(FOLDS):
        out = place == fold
        probe = fit_probe(now[~out], before[~out], int((~out)[:num_harmful].sum()))
        shifts[out] = (change[out] * probe.shift).sum(dim=(1, 2)) - probe.offset
    return shifts


def _means_and_spread(projected: Tensor, num_harmful: int) -> tuple[Tensor, Tensor, Tensor]:
    """The mean over harmful rows, over benign ones, and the root of the mean of the two variances: [L] each."""
    harm, benign = projected[:num_harmful], projected[num_harmful:]
    spread = (harm.var(dim=0) / 2 + benign.var(dim=0) / 2).sqrt().clamp(min=TINY)
    return harm.mean(dim=0), benign.mean(dim=0), spread
