"""The record of every row of the upload: its weight and score, epoch by epoch."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_COLUMNS = ("epoch", "step", "row_id", "weight", "score")


class RowLog:
    """A log with one entry per row and step, which is part of every checkpoint and becomes samples.parquet."""

    def __init__(self) -> None:
        self._entries: list[tuple[int, int, int, float, float]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, epoch: int, step: int, rows: Sequence[tuple[int, float, float]]) -> None:
        """Append the rows of one step, of all ranks: (row id, weight, score; NaN if the defence has no score)."""
        self._entries.extend((epoch, step, row_id, weight, score) for row_id, weight, score in sorted(rows))

    def columns(self) -> dict[str, list[float]]:
        """One list for each column: epoch, step (0-based), row_id, weight (1 = as in SFT), score."""
        return {name: [entry[i] for entry in self._entries] for i, name in enumerate(_COLUMNS)}

    def state(self) -> dict[str, Tensor]:
        """The log as tensors for a checkpoint; float64 holds every row id exactly."""
        return {"row_log": torch.tensor(self._entries, dtype=torch.float64).reshape(-1, len(_COLUMNS))}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self._entries = [
            (int(epoch), int(step), int(row_id), weight, score)
            for epoch, step, row_id, weight, score in state["row_log"].tolist()
        ]
