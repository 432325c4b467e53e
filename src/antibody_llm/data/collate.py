"""Rows of different lengths as one batch of tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .records import TokenizedRow

IGNORED = -100
"""Label of a position that is not trained."""


def pad(rows: Sequence[TokenizedRow], pad_id: int, *, device: torch.device | str | None = None) -> dict[str, Tensor]:
    """Right-padded batch of ``rows``, at least one.

    Returns:
        input_ids: [B, T] int64, T the longest row's length.
        attention_mask: [B, T] int64, 0 at padding.
        labels: [B, T] int64, the token where it is trained and -100 elsewhere; not shifted.
        turns: [B, T] int64, which of the row's trained turns a label belongs to (0-based), -1 where there is none.
    """
    length = max(len(row.input_ids) for row in rows)
    batch = torch.empty((4, len(rows), length), dtype=torch.int64)
    for plane, value in zip(batch, (pad_id, 0, IGNORED, -1), strict=True):
        plane.fill_(value)
    for (input_ids, mask, labels, turns), row in zip(batch.unbind(1), rows, strict=True):  # each [T]
        size = len(row.input_ids)
        input_ids[:size] = torch.tensor(row.input_ids)
        mask[:size] = 1
        for turn, (start, end) in enumerate(row.spans):
            labels[start:end] = input_ids[start:end]
            turns[start:end] = turn
    # One transfer for all four.
    return dict(zip(("input_ids", "attention_mask", "labels", "turns"), batch.to(device).unbind(), strict=True))
