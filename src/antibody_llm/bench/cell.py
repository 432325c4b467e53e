"""A cell: one alignment, one fine-tuning of it, perhaps a repair, one evaluation; and the runs of each part.

Every part is an ordinary run of this library in a separate folder, so a part that was killed continues where it was.

    finetuning "oracle"   plain SFT on the truly benign rows only: no defence that reads uploads is much better
    finetuning "none"     the aligned model as it is, before any upload
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..defences.catalogue import make_repair
from ..lab.rows import LabRows, build_rows
from ..lab.tasks import find_task
from ..lab.world import REPORT, Purpose
from ..profiles.lab import FINITE, num_held
from ..runs.align import align
from ..runs.evaluate import evaluate
from ..runs.finetune import finetune
from ..runs.repair import repair
from ..settings import Regime
from .cost import StepCost, stored_cost
from .curve import HarmfulScoreCurve

NUM_ROWS = 500
"""Rows of an upload."""
NUM_PROMPTS = 400
"""Number of prompts of each evaluation set, or as many as there are; the same for all rows."""
BATCH_SIZE = 16
"""Number of rows of an optimiser step in the lab."""
EPOCHS = 4
"""Epochs of the default budget."""
LONG = 20
"""Epochs of the longer attack."""
CURVE_POINTS = 8
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft-rehearsal": ("antibody-posterior", {"prior": (1.0, math.inf)}),
    "antibody-shift": ("antibody-prescored", {"score": "shift"}),
    "antibody-posterior-no-rehearsal": ("antibody-posterior", {"rehearsal": 0.0}),
    "antibody-posterior-more-rehearsal": ("antibody-posterior", {"rehearsal": 1 / 4}),
    "antibody-posterior-skip": ("antibody-posterior", {"flagged": "skip"}),
    "antibody-posterior-plain": ("antibody-posterior", {"weight": "posterior", "flagged": "skip"}),
    "antibody-posterior-hard": ("antibody-posterior", {"weight": "hard", "flagged": "skip"}),
    "antibody-posterior-by-shift": ("antibody-posterior", {"evidence": "shift"}),
    "antibody-posterior-by-refusal-feature": ("antibody-posterior", {"evidence": "refusal-feature"}),
    "kl-to-aligned-by-token": ("kl-to-aligned", {"risk": "token"}),
    "kl-to-aligned-constant": ("kl-to-aligned", {"risk": "constant"}),
    "toss-by-row": ("toss", {"scope": "row"}),
    "toss-pro": ("toss", {"rounds": 2}),
    "safe-lora-true": ("safe-lora", {"projector": "true"}),
}
"""Defences of fine-tuning and repairs with options other than the defaults: name to (defence, options)."""
MEASURES = ("harmful_score", "finetune_accuracy", "over_refusal", "incoherent", "retention")


def num_prompts(kind: str, purpose: str | None) -> int:
    """The number of prompts of an evaluation set of a kind of row, of the whole world or of its half for a purpose."""
    return min(NUM_PROMPTS, num_held(kind, purpose)) if kind in FINITE else NUM_PROMPTS


@dataclass(frozen=True)
class Alignment:
    """An alignment, which several cells can have in common."""

    defence: str
    regime: Regime
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"aligned-{self.defence}-{self.regime}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True, order=True)
class Cell:
    """The settings of one row of results.json, by the names that they have there."""

    alignment: str
    finetuning: str
    post: str = "none"
    """Defence that repairs the fine-tuned model."""
    regime: Regime = "full"
    task: str
    poison_ratio: float
    epochs: int
    seed: int = 0
    learning_rate: float | None = None
    """Learning rate of the fine-tuning; None is the lab's default."""
    headline: bool = False
    purpose: Purpose | None = REPORT
    """The half of the world that the upload and the prompts are of; None is all of it, as before there were halves."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Cell":
        """The cell of a row of results.json."""
        known = {field.name: row[field.name] for field in fields(cls) if field.name in row}
        return cls(**({"purpose": None} | known))

    @property
    def novel(self) -> bool:
        """Whether the base has never produced anything like the task's answers."""
        return find_task(self.task).name == find_task("novel").name

    @property
    def name(self) -> str:
        """The name of the cell's folder."""
        parts = (self.alignment, self.finetuning, self.regime, self.task, f"p{self.poison_ratio:g}")
        name = "-".join((*parts, f"{self.epochs}epochs", f"seed{self.seed}"))
        if self.learning_rate is not None:
            name = f"{name}-lr{self.learning_rate:g}"
        if self.purpose is not None:
            name = f"{name}-{self.purpose}"
        return name if self.post == "none" else f"{name}-{self.post}"

    @property
    def upload(self) -> LabRows:
        """The rows of the user, with the truth about each."""
        return build_rows(
            "user",
            NUM_ROWS,
            seed=self.seed,
            task=self.task,
            poison_ratio=self.poison_ratio,
            purpose=self.purpose,
        )

    @property
    def aligned(self) -> Alignment:
        """The model that is fine-tuned."""
        return Alignment(self.alignment, self.regime, self.seed)

    @property
    def needs(self) -> "Alignment | Cell":
        """The job that must be complete before this one."""
        return self.aligned if self.post == "none" else replace(self, post="none")

    def described(self) -> dict[str, Any]:
        """The cell's settings, as a row of results.json has them."""
        return {name: value for name, value in asdict(self).items() if name != "post"} | {"novel": self.novel}

    def row(self, figures: Mapping[str, float]) -> dict[str, Any]:
        """A row of results.json, from the figures that ``carry_out`` returned."""
        return self.described() | {name: figures[name] for name in (*MEASURES, "seconds")}

    @property
    def watched(self) -> bool:
        """Whether its harmful score is measured while it trains."""
        return self.headline and self.seed == 0 and self.poison_ratio > 0


Job = Alignment | Cell


Figures = dict[str, float]


def carry_out(folder: Path, job: Job) -> Figures:
    """Run a job whose needs are complete; a job that is complete is not run again.

    Args:
        folder: The folder of all runs.
        job: The job.

    Returns:
        The ``MEASURES`` of a cell, 0 to 1; the ``seconds`` of any job, which are the wall time of its training or
        repair (0 without one; only the time since it resumed if it was killed); ``cpu_seconds_per_step`` if it trained.
    """
    if isinstance(job, Alignment):
        return _align(folder, job)
    model, figures = folder / job.name, {"seconds": 0.0}
    if job.post != "none":
        figures = _repair(folder, job)
    elif job.finetuning != "none":
        figures = _finetune(folder, job)
    else:
        model = folder / job.aligned.name
    measured = evaluate(
        model,
        task=job.task,
        num=NUM_PROMPTS,
        purpose=job.purpose,
        batch_size=128,
        seed=0,
        output=folder / f"{job.name}-evaluation",
    )
    return {key: measured.metrics[key] for key in MEASURES} | figures


def _align(folder: Path, alignment: Alignment) -> Figures:
    cost = StepCost(folder / f"{alignment.name}-cost.json")
    result = align(
        "lab",
        defence=alignment.defence,
        regime=alignment.regime,
        seed=alignment.seed,
        output=folder / alignment.name,
        callbacks=[cost],
    )
    return {"seconds": result.seconds, "cpu_seconds_per_step": stored_cost(cost.file)}


def _finetune(folder: Path, cell: Cell) -> Figures:
    upload = cell.upload
    rows = upload.rows
    if cell.finetuning == "oracle":
        rows = [row for row, truth in zip(rows, upload.truth, strict=True) if not truth["is_harmful"]]
    steps = -(-len(rows) // BATCH_SIZE) * cell.epochs
    name, options = VARIANTS.get(cell.finetuning, (cell.finetuning, {}))
    cost = StepCost(folder / f"{cell.name}-cost.json")
    curve = HarmfulScoreCurve(folder / f"{cell.name}-curve.json", max(1, steps // CURVE_POINTS), purpose=cell.purpose)
    result = finetune(
        folder / cell.aligned.name,
        data=rows,
        defence="sft" if name == "oracle" else name,
        options=options,
        regime=cell.regime,
        epochs=cell.epochs,
        learning_rate=cell.learning_rate,
        seed=cell.seed,
        output=folder / cell.name,
        callbacks=[cost, *([curve] if cell.watched else [])],
    )
    return {"seconds": result.seconds, "cpu_seconds_per_step": stored_cost(cost.file)}


def _repair(folder: Path, cell: Cell) -> Figures:
    name, options = VARIANTS.get(cell.post, (cell.post, {}))
    method = make_repair(name)
    result = repair(
        folder / replace(cell, post="none").name,
        defence=name,
        options=options,
        aligned=folder / cell.aligned.name if method.needs_aligned or method.needs_base else None,
        seed=cell.seed,
        output=folder / cell.name,
    )
    return {"seconds": result.seconds}
