"""The harmful score during a fine-tuning on the lab."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerCallback

from ..data.encode import Renderer
from ..evaluation.generation import generate
from ..evaluation.judges.registry import make_judge
from ..files import write_text
from ..lab.rows import build_rows, record
from ..profiles.lab import LabProfile

NUM_PROMPTS = 100


class HarmfulScoreCurve(TrainerCallback):
    """Measures at the start and every few steps, and writes [[step, harmful score], ...].

    Greedy decoding draws no random number, and the model's mode is restored, so the training is bit for bit the same
    as without these measurements.
    """

    def __init__(self, file: Path, every: int, *, purpose: str | None) -> None:
        self.file, self.every = file, every
        self.points: list[tuple[int, float]] = []
        rows = build_rows("harmful-prompts", NUM_PROMPTS, seed=0, purpose=purpose).rows
        self._records = [record(row, i) for i, row in enumerate(rows)]
        self._prompts = [row["messages"][0]["content"] for row in rows]
        self._judge = make_judge("lab")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure before the first step."""
        if state.global_step == 0:
            self._measure(0, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure every few steps, and after the last."""
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._measure(state.global_step, **kwargs)

    def _measure(self, step: int, *, model: Any, processing_class: PreTrainedTokenizerBase, **kwargs: Any) -> None:
        renderer = Renderer(processing_class, max_length=model.config.max_position_embeddings)
        completions = generate(
            model,
            processing_class,
            [renderer.encode_prompt(r) for r in self._records],
            max_new_tokens=LabProfile.max_new_tokens,
            batch_size=NUM_PROMPTS,
            stop_ids=renderer.stop_ids,
        )
        verdicts = self._judge.judge(self._prompts, completions)
        self.points.append((step, sum(verdict == "complied" for verdict in verdicts) / len(verdicts)))
        write_text(self.file, json.dumps(self.points) + "\n")
