"""What happened to every row of the upload: its weight and score, epoch by epoch."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_COLUMNS = ("epoch", "step", "row_id", "weight", "score")


class RowLog:
    """Grows by one entry per row and step; part of every checkpoint; becomes samples.parquet."""

    def __init__(self) -> None:
        self._entries: list[tuple[int, int, int, float, float]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, epoch: int, step: int, rows: Sequence[tuple[int, float, float]]) -> None:
        """Rows of one step, of all ranks: (row id, weight, score; NaN where the defence has no score)."""
        self._entries.extend((epoch, step, row_id, weight, score) for row_id, weight, score in sorted(rows))

    def columns(self) -> dict[str, list[float]]:
        """epoch, step (0-based), row_id, weight (1 = as in SFT), score: a list each."""
        return {name: [entry[i] for entry in self._entries] for i, name in enumerate(_COLUMNS)}

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint; float64 holds every row id exactly."""
        return {"row_log": torch.tensor(self._entries, dtype=torch.float64).reshape(-1, len(_COLUMNS))}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self._entries = [
            (int(epoch), int(step), int(row_id), weight, score)
            for epoch, step, row_id, weight, score in state["row_log"].tolist()
        ]
