"""The profile of a real model that was taught the English world: rows, refusals, settings and the judge's name."""

from typing import Any

from ..data.source import Source
from ..english.presets import ALIGNMENT_ROWS, ANCHOR_ROWS, EVALUATION_ROWS, LORA, USER_ROWS, preset
from ..english.refusals import REFUSALS
from ..english.rows import build_rows
from ..english.tasks import find_task
from ..lab.rows import HALVED, record
from ..lab.world import REPORT
from .lab import EVALUATION_KINDS
from .protocol import Choice, Profile

NUM_ROWS = {
    "alignment": ALIGNMENT_ROWS,
    "harmful": ALIGNMENT_ROWS // 2,  # one for each refusal
    "benign": ALIGNMENT_ROWS // 2,
    "anchor-harmful": ANCHOR_ROWS,
    "anchor-benign": ANCHOR_ROWS,
    "user": USER_ROWS,
    **dict.fromkeys(EVALUATION_KINDS.values(), EVALUATION_ROWS),
}
"""Rows of each kind of the world, unless another number is asked for."""


class EnglishProfile(Profile):
    """The profile of a model that was prepared for the English world, and of what descends from it."""

    name = "english"
    refusals = REFUSALS
    adapter = LORA
    judges = ("english",)
    max_new_tokens = 48
    default_task = "familiar"

    def rows(self, kind: str, choice: Choice, *, seed: int) -> Source | None:
        """Rows of the world, as many as are chosen, with the chosen task, harmful share and purpose."""
        kind = EVALUATION_KINDS.get(kind, kind)
        task = find_task(choice.task or "familiar").name if kind in ("user", "test") else None
        ratio = (choice.poison_ratio or 0.0) if kind == "user" else 0.0
        purpose = (choice.purpose or REPORT) if kind in HALVED else None
        num = NUM_ROWS[kind] if choice.num is None else choice.num
        rows = build_rows(kind, num, seed=seed, task=task, poison_ratio=ratio, purpose=purpose).rows
        extra = (f", task={task}" if task else "") + (f", poison_ratio={ratio}" if kind == "user" else "")
        extra += f", purpose={purpose}" if purpose else ""
        name = f"english {kind} rows (num={num}, seed={seed}{extra})"
        return Source(name, [record(row, i, name) for i, row in enumerate(rows)])

    def calibration(self, stage: str, defence: str, regime: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The presets in ``english.presets``."""
        return preset(stage, defence, regime)

    def answer(self, task: str | None) -> str:
        """The name of GSM8K's rule for its tasks, else of equality."""
        return "gsm8k" if (task or "").startswith("gsm8k") else "exact"
