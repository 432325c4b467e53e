"""Unfamiliar rows: they are unlike every anchor, so their evidence says nothing.

Evidence is read along one direction, which the anchors fix. Far from the anchors it is an extrapolation, and its error
grows with the distance: " thanks!" after a harmless question moves the state at the last token to where no anchor lies,
and along the direction too. So a row is *unfamiliar* if all of this holds:

    d > near                          farther from every anchor than all but 3 in 100 harmful anchors
    Lam > -1                          not read as benign: benign is not e times as likely, by the anchors
    e < claim * max(1, d / far)       less clearly harmful than all but 3 in 100 harmful anchors; the farther the row,
                                      the clearer it must be

    e      feature-shift                                                          evidence.py
    Lam    log p(e | harm) - log p(e | benign), by the anchors                    primitives/mixture.py
    d      distance from the nearer label's anchors, by their own spread          states.Shape
    near   the distance that 3 harmful anchors in 100 exceed
    far    the distance that 3 anchors in 100 exceed, of both labels
    claim  the evidence that 3 harmful anchors in 100 fall short of

near, far and claim are held out: each anchor is compared with a shape, and a direction, that were fitted without it. So
at most 3 in 100 honest harmful rows of the anchors' kind are unfamiliar, and fewer of the benign ones.

Distance alone does not make a row unfamiliar. Every task that is not among the anchors is far from them (in the lab
farther than nearly all of them), and is read as benign without trouble: the evidence was made to see that alignment
moved nothing along the direction, and whatever else the row is cancels. Only a claim of harm needs support from nearby
anchors. The price: harm that is far *and* reads as benign is not noticed, with this or without it
(docs/antibody-posterior.md).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..likelihood.reader import ModelReader
from ..primitives.mixture import LogRatio
from .anchors import Anchors
from .evidence import BEFORE, NOW, EvidenceKind
from .probe import FOLDS, SHRINKAGE, TINY
from .states import Shape, normalised, states

HONEST = 0.03
"""Largest share of the held-out harmful anchors that may be called unfamiliar."""
LEAN = -1.0
"""Lam from which a row is not read as benign, nats."""


@dataclass(frozen=True)
class Familiarity:
    """The region that the anchors cover, and its bounds (the table at the head of this file).

    Attributes:
        shape: The spread of all anchors.
        near: The distance that 3 harmful anchors in 100 exceed.
        far: The distance that 3 anchors in 100 exceed.
        claim: The evidence that 3 harmful anchors in 100 fall short of.
        ratio: Lam.
        held_out: [rows], each anchor's distance from the others.
    """

    shape: Shape
    near: float
    far: float
    claim: float
    ratio: LogRatio
    held_out: Tensor

    def unfamiliar(self, evidence: Tensor, distance: Tensor) -> Tensor:
        """Whether rows of this feature-shift [n] and distance [n] are unfamiliar: [n], bool."""
        bar = self.claim * (distance / self.far).clamp(min=1)
        return (distance > self.near) & (self.ratio(evidence) > LEAN) & (evidence < bar)


def read_familiarity(reader: ModelReader, anchors: Anchors) -> Familiarity:
    """Measure the region that the anchors cover, by two passes over their stored rows.

    Nothing of it is stored, so that anchors written by earlier releases have one too.

    Raises:
        ModelError: feature-shift does not tell the anchors apart, or there is no model before alignment.
        TrainingError: what is read of a row is not finite.
    """
    now, before = (states(reader, anchors.rows, before=when) for when in (NOW, BEFORE))
    ratio = anchors.log_ratio(EvidenceKind.FEATURE_SHIFT)
    return fit_familiarity(normalised(now) - normalised(before), anchors.num_harmful, anchors.held_out, ratio)


def fit_familiarity(change: Tensor, num_harmful: int, held_out_shifts: Tensor, ratio: LogRatio) -> Familiarity:
    """Fit the region that the anchors cover.

    Args:
        change: [rows, L, D]: what alignment changed in each anchor's states, harmful rows first.
        num_harmful: How many are harmful.
        held_out_shifts: [rows], feature-shift of each by a probe that was fitted without it.
        ratio: Lam of feature-shift.
    """
    distance = held_out_distances(change, num_harmful)
    return Familiarity(
        shape=fit_shape(change, num_harmful),
        near=float(distance[:num_harmful].quantile(1 - HONEST, interpolation="higher")),
        far=float(distance.quantile(1 - HONEST, interpolation="higher")),
        claim=float(held_out_shifts[:num_harmful].quantile(HONEST, interpolation="lower")),
        ratio=ratio,
        held_out=distance,
    )


def fit_shape(change: Tensor, num_harmful: int) -> Shape:
    """Means, and the covariance within labels shrunk towards a multiple of the identity.

    The eigenvectors come from the rows' products: there are no more than rows, however large L D is.
    """
    flat = change.flatten(1).double()
    means = torch.stack([flat[:num_harmful].mean(dim=0), flat[num_harmful:].mean(dim=0)])
    x = torch.cat([flat[:num_harmful] - means[0], flat[num_harmful:] - means[1]])
    variances, vectors = torch.linalg.eigh(x @ x.T / (len(x) - 2))
    floor = SHRINKAGE * float(variances.sum()) / x.shape[1] + TINY
    kept = variances > floor * 1e-6
    variances = variances[kept]
    axes = (x.T @ vectors[:, kept] / ((len(x) - 2) * variances).sqrt()).T
    gains = 1 / ((1 - SHRINKAGE) * variances + floor) - 1 / floor
    return Shape(means.float(), axes.float().contiguous(), gains.float(), 1 / floor)


def held_out_distances(change: Tensor, num_harmful: int) -> Tensor:
    """Distance of each labelled row from the others, ``FOLDS``-fold: [rows]."""
    place = torch.cat([torch.arange(num_harmful), torch.arange(len(change) - num_harmful)]) % FOLDS
    distances = torch.empty(len(change))
    for fold in range(FOLDS):
        out = place == fold
        shape = fit_shape(change[~out], int((~out)[:num_harmful].sum()))
        distances[out] = shape.distance(change[out])
    return distances
