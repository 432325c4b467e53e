"""What a training costs, in CPU time of its process: other work on the machine counts for little."""

import json
from pathlib import Path
from time import process_time
from typing import Any

from transformers import TrainerCallback

from ..files import write_text


class StepCost(TrainerCallback):
    """CPU seconds of the optimiser steps that this process takes, written to ``file`` at the end: their mean.

    From the start of a step to its end: passes, optimiser and what the defence does after it. Loading, what a defence
    prepares before the first step, logging and checkpoints are not in it. A mean and not a median, since the steps of
    some defences differ by design. Of a run that was killed, the steps since it went on.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._seconds, self._num_steps, self._started = 0.0, 0, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the first forward pass."""
        self._started = process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the optimiser."""
        self._seconds += process_time() - self._started
        self._num_steps += 1

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Unless a resumed run had no step left: the figure is there then."""
        if self._num_steps:
            write_text(self.file, json.dumps({"cpu_seconds_per_step": self._seconds / self._num_steps}) + "\n")


def stored_cost(file: Path) -> float:
    """CPU seconds per step of a training that is complete."""
    return float(json.loads(file.read_text(encoding="utf-8"))["cpu_seconds_per_step"])
