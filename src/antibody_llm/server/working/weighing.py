"""How a defence weighted the rows of an upload, as counts that name no row: what the console's histogram is made of."""

from pathlib import Path
from typing import Any

CENTRES = tuple(2.0**power for power in range(-4, 5))
"""Middle of each bin: half as much as in SFT, as much, twice as much. A bin reaches to the square roots between; the
first and the last hold all that lies beyond."""


def weight_summary(samples: Path) -> dict[str, Any] | None:
    """Weights and scores of every epoch.

    Args:
        samples: ``samples.parquet`` of a run.

    Returns:
        ``centres`` and, by epoch, the ``counts`` of rows in each bin of weights (1 = as in SFT) and the ``scores`` at
        the quartiles (None for a defence that has none); None where there is no such file.
    """
    if not samples.is_file():
        return None
    import numpy as np
    import pyarrow.parquet as pq

    table = pq.read_table(samples, columns=["row_id", "epoch", "weight", "score"])
    row_id, epoch, weight = (table[name].to_numpy() for name in ("row_id", "epoch", "weight"))
    score = table["score"].to_numpy(zero_copy_only=False).astype(float)
    edges = np.sqrt(np.array(CENTRES[:-1]) * np.array(CENTRES[1:]))
    epochs = []
    for number in np.unique(epoch):
        own = (epoch == number) & (row_id >= 0)  # a row that the defence mixed in is not the customer's
        counts = np.bincount(np.searchsorted(edges, weight[own], side="right"), minlength=len(CENTRES))
        known = score[own][np.isfinite(score[own])]
        quartiles = [float(value) for value in np.quantile(known, (0.25, 0.5, 0.75))] if len(known) else None
        epochs.append({"epoch": int(number), "counts": counts.tolist(), "scores": quartiles})
    return {"centres": list(CENTRES), "epochs": epochs}
