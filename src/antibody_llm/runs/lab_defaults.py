"""What a run takes from the lab where its model comes from there: rows, refusals, calibration."""

from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..lab.presets import ALIGNMENT_ROWS, ANCHOR_ROWS, HARMFUL_PROMPTS, LORA, PRESETS, USER_ROWS
from ..lab.refusals import REFUSALS
from ..lab.rows import build_rows, record
from ..lab.tasks import find_task
from .sources import Source

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
"""Rows of each kind unless asked for otherwise."""

FINITE = ("harmful-prompts", "lookalike")
"""Kinds of which the world holds no more than that."""

MAX_NEW_TOKENS = 32
"""No answer of the lab's world is longer."""


@dataclass(frozen=True, kw_only=True)
class LabData:
    """Which rows of the lab; without effect on data that is given."""

    num: int | None = None
    """Rows of the data that the verb is about: the upload, the alignment rows, each evaluation set."""
    task: str | None = None
    """A task's name, or familiar or novel."""
    poison_ratio: float | None = None
    """Harmful share of the upload."""

    def refuse_without_lab(self, model: str) -> None:
        """Raises ConfigError where something is set that only the lab's own rows can obey."""
        for flag, value in (("--num", self.num), ("--task", self.task), ("--poison-ratio", self.poison_ratio)):
            if value is not None:
                raise ConfigError(
                    f"{flag} chooses among the lab's rows, and {model} is not a model of the lab, or its data is given "
                    "as a file. Leave it out, or mix the file beforehand."
                )


def lab_rows(kind: str, lab: LabData, *, seed: int, main: bool = True) -> Source:
    """Rows of a kind; ``main`` if ``lab.num`` speaks of them."""
    task = find_task(lab.task or "familiar").name if kind in ("user", "test") else None
    ratio = (lab.poison_ratio or 0.0) if kind == "user" else 0.0
    num = lab.num if main and lab.num is not None else NUM_ROWS[kind]
    if kind in FINITE:
        num = min(num, NUM_ROWS[kind])
    rows = build_rows(kind, num, seed=seed, task=task, poison_ratio=ratio).rows
    extra = (f", task={task}" if task else "") + (f", poison_ratio={ratio}" if kind == "user" else "")
    name = f"lab {kind} rows (num={num}, seed={seed}{extra})"
    return Source(name, [record(row, i, name) for i, row in enumerate(rows)])


def lab_refusals() -> tuple[str, ...]:
    """The refusals that the lab's model was aligned with."""
    return REFUSALS


def calibration(stage: str, defence: str, regime: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The lab's (options, fields of SFTConfig); of a defence that it does not know, plain SFT's training alone."""
    preset = PRESETS.get((stage, defence, regime))
    options = {} if preset is None else dict(preset["options"])
    names = {"epochs": "num_train_epochs", "batch_size": "per_device_train_batch_size"}
    training = (preset or PRESETS.get((stage, "sft", regime), {"training": {}}))["training"]
    return options, {names.get(name, name): value for name, value in training.items()}


def new_adapter() -> dict[str, Any]:
    """The lab's options of a LoRA adapter."""
    return dict(LORA)
