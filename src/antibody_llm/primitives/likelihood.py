"""Negative log-likelihood of completions."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import DataError

IGNORED = -100
"""The label of positions that are not trained: prompt and padding."""


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of each target token.

    Args:
        logits: [B, T, V], any float type; position t predicts ``targets[:, t]`` (already shifted).
        targets: [B, T]; -100 where there is nothing to predict.

    Returns:
        [B, T], float32, nats; exactly 0 where the target is -100. Only the other positions are upcast.
    """
    mask = targets != IGNORED
    # `masked_scatter` keeps a batch without targets connected to the model: its gradient is zero, not absent.
    nll = F.cross_entropy(logits[mask].float(), targets[mask], reduction="none")
    return torch.zeros(targets.shape, dtype=nll.dtype, device=nll.device).masked_scatter(mask, nll)


def sequence_nll(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each completion, and how many tokens it has.

    Args:
        logits: [B, T, V], any float type; position t predicts token t + 1.
        labels: [B, T]; -100 at prompt and padding.

    Returns:
        total: [B], float32, nats, summed over the completion's tokens. Lower is likelier.
        num_tokens: [B], int64.

    Raises:
        DataError: a row has no completion token, so that its mean would be 0/0.

    Source: s_i of Antibody (2603.00498), Sec. 4.2, is a difference of total / num_tokens. Not Hugging Face's
    ``.loss``, which averages over all tokens of the batch.
    """
    targets = labels[:, 1:]
    num_tokens = (targets != IGNORED).sum(dim=1)
    if (num_tokens == 0).any():
        row = int((num_tokens == 0).nonzero()[0])
        raise DataError(f"row {row} of the batch has no completion token to score; its mean would be 0/0.")
    return token_nll(logits[:, :-1], targets).sum(dim=1), num_tokens
