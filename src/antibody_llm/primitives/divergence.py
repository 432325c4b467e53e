"""Divergence between what two models predict for one token."""

from torch import Tensor
from torch.nn import functional as F


def token_kl(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(p || q) = sum_v p_v (log p_v - log q_v), p = softmax(reference), q = softmax(logits).

    Args:
        reference: [..., V], any float type; a constant, as a rule.
        logits: [..., V].

    Returns:
        [...], float32, nats; 0 where the two agree.
    """
    p, q = F.log_softmax(reference.float(), dim=-1), F.log_softmax(logits.float(), dim=-1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(dim=-1)
