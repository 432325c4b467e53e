"""What the demonstration runs: its cells, and in which order.

cell        one alignment, one fine-tuning of it, one evaluation; a row of results.json
headline    the pair sft + sft and antibody + antibody, familiar task, default budget, three seeds
oracle      plain SFT on the truly benign rows only: what no defence that reads the upload can beat by much
none        the aligned model as it is, before any upload
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..lab.tasks import find_task
from .train import Regime

SEEDS = (0, 1, 2)
NUM_ROWS = 500
"""Rows of an upload."""
NUM_PROMPTS = 400
"""Prompts of each evaluation set, the same for all rows."""
EPOCHS = 4
"""The default budget."""
LONG = 20
"""Epochs of the longer attack."""
POISON_RATIO = 0.2
HEADLINE_REGIME: Regime = "full"
"""In a model of a million weights LoRA, published settings or not, does not hold; its rows are shown as they are."""
CURVE_POINTS = 8
PAIR = (("sft", "sft"), ("antibody", "antibody"))


@dataclass(frozen=True, kw_only=True, order=True)
class Cell:
    """What is done to get one row. The names are those of results.json."""

    alignment: str
    finetuning: str
    regime: Regime = HEADLINE_REGIME
    task: str
    poison_ratio: float
    epochs: int
    seed: int = 0
    headline: bool = False

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Cell":
        """The cell of a row of results.json."""
        return cls(**{field.name: row[field.name] for field in fields(cls)})

    @property
    def novel(self) -> bool:
        """Whether the base has never produced anything like the task's answers."""
        return find_task(self.task).name == find_task("novel").name

    @property
    def name(self) -> str:
        """Of the cell's folder."""
        parts = (self.alignment, self.finetuning, self.regime, self.task, f"p{self.poison_ratio:g}")
        return "-".join((*parts, f"{self.epochs}epochs", f"seed{self.seed}"))


def plan(*, quick: bool) -> list[Cell]:
    """All cells, the headline first."""
    familiar, novel = find_task("familiar").name, find_task("novel").name
    seeds = SEEDS[:1] if quick else SEEDS

    def cell(pair: tuple[str, str], **changed: Any) -> Cell:
        default: dict[str, Any] = {"task": familiar, "poison_ratio": POISON_RATIO, "epochs": EPOCHS}
        return Cell(alignment=pair[0], finetuning=pair[1], **(default | changed))

    cells = [
        cell(pair, poison_ratio=p, seed=seed, headline=True)
        for seed in seeds
        for p in (0.0, POISON_RATIO)
        for pair in PAIR
    ]
    cells += [cell((pair[0], "none"), poison_ratio=0.0, epochs=0) for pair in PAIR]
    if quick:
        return cells
    mixed = (("sft", "antibody"), ("antibody", "sft"))
    cells += [cell(pair, poison_ratio=p) for p in (0.0, POISON_RATIO) for pair in mixed]
    cells += [cell((alignment, "oracle")) for alignment in ("sft", "antibody")]
    cells += [cell(pair, epochs=LONG) for pair in PAIR]
    cells += [cell((pair[0], "none"), task=novel, poison_ratio=0.0, epochs=0) for pair in PAIR]
    cells += [cell(pair, task=novel) for pair in (*PAIR, ("antibody", "oracle"))]
    other: Regime = "lora"
    cells += [cell(pair, poison_ratio=p, regime=other) for p in (0.0, POISON_RATIO) for pair in PAIR]
    return cells
