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
    input_ids, mask, labels, turns = [], [], [], []
    for row in rows:
        size, padding = len(row.input_ids), length - len(row.input_ids)
        row_labels, row_turns = [IGNORED] * length, [-1] * length
        for turn, (start, end) in enumerate(row.spans):
            row_labels[start:end] = row.input_ids[start:end]
            row_turns[start:end] = [turn] * (end - start)
        input_ids.append([*row.input_ids, *[pad_id] * padding])
        mask.append([1] * size + [0] * padding)
        labels.append(row_labels)
        turns.append(row_turns)
    # One transfer for all four.
    batch = torch.tensor([input_ids, mask, labels, turns], dtype=torch.int64).to(device)
    return dict(zip(("input_ids", "attention_mask", "labels", "turns"), batch.unbind(), strict=True))
