"""The demonstration: undefended fine-tuning loses its safety, Antibody keeps it, on a model that is really trained.

headline    the pair sft + sft and antibody + antibody, familiar task, default budget, three seeds

Its runs are in ``OUTPUT/cells``; a demo that was killed continues where it was.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..files import write_text
from ..lab.tasks import find_task
from ..settings import Regime
from .cell import EPOCHS, LONG, Cell
from .matrix import all_jobs, carried_out

RESULTS = "results.json"
SEEDS = (0, 1, 2)
POISON_RATIO = 0.2
HEADLINE_REGIME: Regime = "full"
"""Regime of the headline. In a model of a million weights safety does not hold under LoRA, with published settings or
others; those rows are shown as they are."""
PAIR = (("sft", "sft"), ("antibody", "antibody"))


def demo(
    *,
    output: str | Path,
    quick: bool = False,
    jobs: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Run every cell and write ``results.json``.

    Args:
        output: The folder of all runs; those that are complete are not run again.
        quick: Run one seed and the headline cells only.
        jobs: The number of processes; by default one per core.
        progress: A function that is called with (name of a finished job, number finished, number of all).

    Returns:
        The content of results.json.
    """
    started = time.monotonic()
    folder = Path(output)
    cells = plan(quick=quick)
    all_of_them = all_jobs(cells)
    rows = {}
    for number, done in enumerate(carried_out(folder / "cells", all_of_them, processes=jobs), 1):
        if done.error is not None:
            raise done.error
        if isinstance(done.job, Cell):
            rows[done.job] = done.job.row(done.figures)
        if progress is not None:
            progress(done.job.name, number, len(all_of_them))
    results = {"rows": [rows[cell] for cell in cells], "seconds": time.monotonic() - started}
    write_text(folder / RESULTS, json.dumps(results, indent=2) + "\n")
    return results


def plan(*, quick: bool) -> list[Cell]:
    """All cells, the headline's first."""
    familiar, novel = find_task("familiar").name, find_task("novel").name
    seeds = SEEDS[:1] if quick else SEEDS

    def cell(pair: tuple[str, str], **changed: Any) -> Cell:
        default: dict[str, Any] = {
            "task": familiar,
            "poison_ratio": POISON_RATIO,
            "epochs": EPOCHS,
            "regime": HEADLINE_REGIME,
            "purpose": None,  # as docs/demo and the README's picture; until settings are chosen on the other half
        }
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
