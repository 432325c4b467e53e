"""The cost of a training in CPU time of its process, which other work on the machine changes little."""

import json
from pathlib import Path
from time import process_time
from typing import Any

from transformers import TrainerCallback

from ..files import write_text


class StepCost(TrainerCallback):
    """Measures the mean CPU seconds of this process's optimiser steps, and writes them to ``file`` at the end.

    A step counts from its start to its end: passes, optimiser and the defence's work after it. Loading, a defence's
    preparation before the first step, logging and checkpoints do not count. It is a mean and not a median, since the
    steps of some defences differ by design. If a run was killed, only the steps since it resumed count.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._seconds, self._num_steps, self._started = 0.0, 0, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock before the first forward pass."""
        self._started = process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock after the optimiser."""
        self._seconds += process_time() - self._started
        self._num_steps += 1

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the figure, unless a resumed run had no step left: then the file exists already."""
        if self._num_steps:
            write_text(self.file, json.dumps({"cpu_seconds_per_step": self._seconds / self._num_steps}) + "\n")


def stored_cost(file: Path) -> float:
    """The CPU seconds per step of a complete training."""
    return float(json.loads(file.read_text(encoding="utf-8"))["cpu_seconds_per_step"])
