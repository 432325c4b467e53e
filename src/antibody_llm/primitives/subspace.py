"""The space that the columns of a matrix span, and what of another lies outside it."""

import torch
from torch import Tensor


@torch.no_grad()
def column_space(matrix: Tensor, rank: int | None = None) -> Tensor:
    """An orthonormal basis of the columns, [rows, k], float32; k is 0 for a zero matrix.

    By singular values, not by QR: without pivots QR makes up directions for columns that are zero or dependent.

    Args:
        matrix: [rows, columns].
        rank: The largest k: the directions with the largest singular values; by default all that are not rounding.
    """
    u: Tensor
    u, s, _ = torch.linalg.svd(matrix.float(), full_matrices=False)
    tiny = float(s[0]) * max(matrix.shape) * torch.finfo(torch.float32).eps
    k = int((s > tiny).sum())
    return u[:, : k if rank is None else min(k, rank)]


@torch.no_grad()
def leading_columns(matrix: Tensor, energy: float) -> Tensor:
    """An orthonormal basis of the fewest left singular directions that hold a share of the squared norm: [rows, k].

    Args:
        matrix: [rows, columns].
        energy: The share, above 0 and up to 1; 1 keeps all that are not rounding.
    """
    u, s, _ = torch.linalg.svd(matrix.float(), full_matrices=False)
    tiny = float(s[0]) * max(matrix.shape) * torch.finfo(torch.float32).eps
    held = s.double().square().cumsum(0)
    enough = int((held < energy * held[-1]).sum()) + 1
    basis: Tensor = u[:, : min(enough, int((s > tiny).sum()))]
    return basis


@torch.no_grad()
def outside(matrix: Tensor, basis: Tensor) -> Tensor:
    """(I - Q Q') M: the matrix less its part within the basis Q, [rows, k] with orthonormal columns; M's dtype."""
    m = matrix.float()
    return (m - basis @ (basis.T @ m)).to(matrix.dtype)
