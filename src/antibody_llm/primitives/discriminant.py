"""Fisher's linear discriminant between two labelled sets of vectors, from sums that any number of them can go into."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_TINY = 1e-12


@dataclass(frozen=True)
class Moments:
    """Sums over labelled vectors, float64.

    Attributes:
        num: [2]: how many vectors have label 0, and 1.
        total: [2, D]: their sums.
        product: [D, D]: the sum of x x' over both labels.
    """

    num: Tensor
    total: Tensor
    product: Tensor

    @classmethod
    def of(cls, vectors: Tensor, labels: Tensor) -> "Moments":
        """The sums over vectors [N, D] with labels [N] of 0 and 1."""
        member = torch.stack([labels == 0, labels == 1]).to(vectors)
        product = (vectors.T @ vectors).double()
        return cls(member.sum(dim=1).double(), (member @ vectors).double(), product)

    def add(self, vectors: Tensor, labels: Tensor) -> None:
        """Add further vectors, in place."""
        more = Moments.of(vectors, labels)
        for mine, theirs in ((self.num, more.num), (self.total, more.total), (self.product, more.product)):
            mine.add_(theirs)


def fisher(parts: Iterable[Moments], *, shrinkage: float) -> tuple[Tensor, float]:
    """The direction S^-1 (m_1 - m_0), scaled to 1 between the means, and where m_0 lies along it.

    S = (1 - s) W + s t I, with W the covariance within the labels and t its mean variance.

    Args:
        parts: The vectors, in any number of parts.
        shrinkage: s, 0 to 1.

    Returns:
        direction: [D], float64.
        offset: <m_0, direction>.
    """
    parts = list(parts)
    num, total, product = (sum(getattr(part, name) for part in parts) for name in ("num", "total", "product"))
    means = total / num[:, None]
    within = product - (means * num[:, None]).T @ means
    within = within / (num.sum() - 2).clamp(min=1)
    variance = float(within.diagonal().mean())
    within = (1 - shrinkage) * within
    within.diagonal().add_(shrinkage * variance + _TINY)
    difference = means[1] - means[0]
    direction = torch.linalg.solve(within, difference)
    direction = direction / (direction @ difference).clamp(min=_TINY)
    return direction, float(means[0] @ direction)
