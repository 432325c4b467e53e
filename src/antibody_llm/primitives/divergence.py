"""Divergence between what two models predict for one token."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class _TokenKL(torch.autograd.Function):
    """KL(p || q) with its gradient in closed form, q - p.

    Autograd's is q sum(p) - p, and the sum is 1 only up to rounding: where both models agree it leaves noise, whose
    direction a projection would take for a signal.
    """

    @staticmethod
    def forward(ctx: Any, reference: Tensor, logits: Tensor) -> Tensor:
        log_p, log_q = F.log_softmax(reference.float(), dim=-1), F.log_softmax(logits.float(), dim=-1)
        p = log_p.exp()
        ctx.save_for_backward((log_q.exp() - p).to(logits.dtype))
        return (p * (log_p - log_q)).sum(dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[None, Tensor]:
        (difference,) = ctx.saved_tensors
        return None, slope[..., None].to(difference.dtype) * difference


def token_kl(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(p || q) = sum_v p_v (log p_v - log q_v), p = softmax(reference), q = softmax(logits).

    Args:
        reference: [..., V], any float type; a constant.
        logits: [..., V].

    Returns:
        [...], float32, nats. Where the two agree bitwise, it is 0 and so is its gradient.
    """
    kl: Tensor = _TokenKL.apply(reference.detach(), logits)  # type: ignore[no-untyped-call]
    return kl


def coarse_log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities of some tokens and, in the last place, of all others together.

    Args:
        logits: [M, V], any float type.
        tokens: [M, k], k different tokens, fewer than V.

    Returns:
        [M, k + 1], float32.
    """
    logits = logits.float()
    others = logits.scatter(1, tokens, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([logits.gather(1, tokens), others], dim=1) - logits.logsumexp(dim=1, keepdim=True)


def coarse_kl(log_p: Tensor, logits: Tensor, tokens: Tensor, *, reverse: bool = False) -> Tensor:
    """KL(p || q) over some tokens and all others taken as one, at most that over all: [M], float32, nats.

    Args:
        log_p: [M, k + 1], from ``coarse_log_probs``; a constant.
        logits: [M, V], of q.
        tokens: [M, k].
        reverse: KL(q || p) instead.
    """
    log_q = coarse_log_probs(logits, tokens)
    weights, apart = (log_q.exp(), log_q - log_p) if reverse else (log_p.exp(), log_p - log_q)
    return (weights * apart).sum(dim=1)
