"""What a run leaves of its steps."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import TrainerCallback

from ..data.records import Record
from ..files import append, disk_errors, whole, write_text
from ..store.contents import METRICS
from ..training.rowlog import RowLog

SAMPLES = "samples.parquet"
_NOT_RESULTS = ("epoch", "step", "learning_rate", "grad_norm")


class MetricsFile(TrainerCallback):
    """Writes metrics.jsonl during training, a line for every logged step."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / METRICS

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop what a resumed run logged after its checkpoint."""
        write_metrics(self.file, state.log_history)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Append a line, as a whole or not at all."""
        line = "".join(json.dumps(entry) + "\n" for entry in _steps(state.log_history[-1:])).encode()
        with disk_errors(self.file), self.file.open("ab", buffering=0) as file:
            append(file, line)


def write_metrics(file: Path, log_history: Sequence[Mapping[str, Any]]) -> None:
    """Write metrics.jsonl as a whole."""
    write_text(file, "".join(json.dumps(entry) + "\n" for entry in _steps(log_history)))


def last_values(log_history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The last logged loss and the defence's own metrics."""
    entries = _steps(log_history)
    if not entries:
        return {}
    values = {name: float(value) for name, value in entries[-1].items() if name not in _NOT_RESULTS}
    return dict(sorted(values.items(), key=lambda item: (item[0] != "loss", item[0])))


def write_samples(file: Path, row_log: RowLog, records: Sequence[Record]) -> None:
    """Write samples.parquet: row_id, line, epoch, step (0-based), weight (1 = as in SFT), score (null without one).

    A row that a defence mixed in has a negative row_id and no line.

    Raises:
        OutputError: it cannot be written.
    """
    columns = row_log.columns()
    lines = {record.row_id: record.line for record in records}
    table = pa.table(
        {
            "row_id": pa.array(columns["row_id"], pa.int64()),
            "line": pa.array([lines.get(int(row_id)) for row_id in columns["row_id"]], pa.int64()),
            "epoch": pa.array(columns["epoch"], pa.int32()),
            "step": pa.array(columns["step"], pa.int32()),
            "weight": pa.array(columns["weight"], pa.float64()),
            "score": pa.array([None if math.isnan(s) else s for s in columns["score"]], pa.float64()),
        }
    )
    with whole(file) as temporary:
        pq.write_table(table, temporary)


def _steps(log_history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The log without the Trainer's closing summary: timings, and a mean that a resumed run takes over fewer steps.

    Fields are in a checkpoint's order, so that a resumed run writes the same file.
    """
    return [dict(sorted(entry.items())) for entry in log_history if "train_runtime" not in entry]
