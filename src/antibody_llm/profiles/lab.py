"""The lab's profile: its fictional world's rows and refusals, and settings for a model of a million weights."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..data.source import Source
from ..lab.presets import ALIGNMENT_ROWS, ANCHOR_ROWS, HARMFUL_PROMPTS, LORA, PRESETS, USER_ROWS
from ..lab.refusals import REFUSALS
from ..lab.rows import HALVED, build_rows, record
from ..lab.tasks import find_task
from ..lab.world import questions
from ..models.names import PACKAGED, resolve
from .protocol import Choice, Profile

NUM_ROWS = {
    "alignment": ALIGNMENT_ROWS,
    "harmful": ALIGNMENT_ROWS // 2,  # one for each refusal
    "benign": ALIGNMENT_ROWS // 2,
    "anchor-harmful": ANCHOR_ROWS,
    "anchor-benign": ANCHOR_ROWS,
    "user": USER_ROWS,
    "harmful-prompts": HARMFUL_PROMPTS,
    "lookalike": 336,
    "test": 400,
    "retention": 400,
}
"""Rows of each kind of the world, unless another number is asked for."""

FINITE = ("harmful-prompts", "lookalike")
"""Kinds of row of which the world holds no more than ``NUM_ROWS``."""

EVALUATION_KINDS = {
    "harmful_prompts": "harmful-prompts",
    "benign_prompts": "lookalike",
    "test_data": "test",
    "retention_data": "retention",
}
"""The world's kind of row for each evaluation set; a role of training has the name of its kind."""

PACKAGED_PLACES = (("antibody_llm", "lab", "files"), ("antibody", "lab", "files"))
"""Ends of the folders of the packaged models. The second is found in runs and adapters that were stored under the
package's former name."""


class LabProfile(Profile):
    """The profile of the lab's models."""

    name = "lab"
    refusals = REFUSALS
    adapter = LORA
    judges = ("lab",)
    max_new_tokens = 32
    default_task = "familiar"

    def rows(self, kind: str, choice: Choice, *, seed: int) -> Source | None:
        """Rows of the world, as many as are chosen, with the task and the harmful share that are chosen."""
        kind = EVALUATION_KINDS.get(kind, kind)
        task = find_task(choice.task or "familiar").name if kind in ("user", "test") else None
        ratio = (choice.poison_ratio or 0.0) if kind == "user" else 0.0
        purpose = choice.purpose if kind in HALVED else None
        num = NUM_ROWS[kind] if choice.num is None else choice.num
        if kind in FINITE:
            num = min(num, num_held(kind, purpose))
        rows = build_rows(kind, num, seed=seed, task=task, poison_ratio=ratio, purpose=purpose).rows
        extra = (f", task={task}" if task else "") + (f", poison_ratio={ratio}" if kind == "user" else "")
        extra += f", purpose={purpose}" if purpose else ""
        name = f"lab {kind} rows (num={num}, seed={seed}{extra})"
        return Source(name, [record(row, i, name) for i, row in enumerate(rows)])

    def calibration(self, stage: str, defence: str, regime: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The presets in ``lab.presets``; for a defence that is not among them, the training of plain SFT alone."""
        preset = PRESETS.get((stage, defence, regime))
        options = {} if preset is None else dict(preset["options"])
        names = {"epochs": "num_train_epochs", "batch_size": "per_device_train_batch_size"}
        training = (preset or PRESETS.get((stage, "sft", regime), {"training": {}}))["training"]
        return options, {names.get(name, name): value for name, value in training.items()}

    def answer(self, task: str | None) -> str:
        """The name of GSM8K's rule for the tasks shaped like it, else of equality."""
        return "gsm8k" if (task or "").startswith("gsm8k") else "exact"


def num_held(kind: str, purpose: str | None) -> int:
    """The number of rows of a kind in ``FINITE`` that the world, or its half for a purpose, holds."""
    forbidden = kind == "harmful-prompts"
    splits = ("held-out", "attacked", "cross") if forbidden else ("held-out",)
    return sum(len(questions(forbidden=forbidden, split=split, purpose=purpose)) for split in splits)


def in_lab(lineage: Iterable[str]) -> bool:
    """Whether a model, given with its ancestors, is one of the packaged models or descends from one."""
    return any(name in PACKAGED or Path(resolve(name)).parts[-4:-1] in PACKAGED_PLACES for name in lineage)
