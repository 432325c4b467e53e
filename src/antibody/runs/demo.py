"""The demonstration: undefended fine-tuning loses its safety, Antibody keeps it, on a model that is really trained.

Every alignment, fine-tuning and evaluation is an ordinary run of this library in a folder of its own below
``OUTPUT/cells``; a demo that was killed goes on where it was. Cells run in as many processes as there are cores, each
on one thread, so that a row does not depend on how many there are.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ..lab.rows import build_rows
from .align import align
from .curve import HarmfulScoreCurve
from .demo_cells import CURVE_POINTS, NUM_PROMPTS, NUM_ROWS, SEEDS, Cell, plan
from .evaluate import evaluate
from .finetune import finetune
from .folder import write_text
from .train import Regime

RESULTS = "results.json"

Alignment = tuple[str, Regime, int]
"""Defence, regime, seed."""


def demo(
    *,
    output: str | Path,
    quick: bool = False,
    jobs: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Run every cell and write ``results.json``.

    Args:
        output: Where everything goes; what is complete there already is not run again.
        quick: One seed and the headline cells only.
        jobs: Processes; by default one per core.
        progress: Called with (what was finished, number finished, number of all).

    Returns:
        What stands in results.json.
    """
    started = time.monotonic()
    folder = Path(output)
    cells = plan(quick=quick)
    jobs = jobs or max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    rows: dict[Cell, dict[str, Any]] = {}
    done, total = 0, len(cells) + len({_alignment(cell) for cell in cells})
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        for what, cell, row in _carried_out(pool, folder / "cells", cells):
            done += 1
            if cell is not None and row is not None:
                rows[cell] = row
            if progress is not None:
                progress(what, done, total)
    results = {"rows": [rows[cell] for cell in cells], "seconds": time.monotonic() - started}
    write_text(folder / RESULTS, json.dumps(results, indent=2) + "\n")
    return results


def _carried_out(
    pool: ProcessPoolExecutor, folder: Path, cells: list[Cell]
) -> Iterator[tuple[str, Cell | None, dict[str, Any] | None]]:
    """Alignments first, each cell as soon as its own is there."""
    waiting: dict[Future[Any], Alignment | Cell] = {}
    for alignment in dict.fromkeys(_alignment(cell) for cell in cells):
        waiting[pool.submit(_align, folder, alignment)] = alignment
    try:
        while waiting:
            finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                job = waiting.pop(future)
                result = future.result()
                if isinstance(job, Cell):
                    yield job.name, job, result
                    continue
                for cell in cells:
                    if _alignment(cell) == job:
                        waiting[pool.submit(_cell, folder, cell)] = cell
                yield "aligned " + " ".join(str(part) for part in job), None, None
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise


def _alignment(cell: Cell) -> Alignment:
    return cell.alignment, cell.regime, cell.seed


def _aligned_folder(folder: Path, alignment: Alignment) -> Path:
    defence, regime, seed = alignment
    return folder / f"aligned-{defence}-{regime}-seed{seed}"


# -- in a process of its own -------------------------------------------------------------------------------------


def _one_thread() -> None:
    import logging
    import warnings

    import torch
    from transformers.utils import logging as transformers_logging

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()


def _align(folder: Path, alignment: Alignment) -> None:
    defence, regime, seed = alignment
    align("lab", defence=defence, regime=regime, seed=seed, output=_aligned_folder(folder, alignment))


def _cell(folder: Path, cell: Cell) -> dict[str, Any]:
    """One row of results.json."""
    model = _aligned_folder(folder, _alignment(cell))
    seconds = 0.0
    if cell.finetuning != "none":
        seconds, model = _finetune(folder / cell.name, model, cell)
    measured = evaluate(
        model, task=cell.task, num=NUM_PROMPTS, batch_size=128, seed=0, output=folder / f"{cell.name}-evaluation"
    )
    keys = ("harmful_score", "finetune_accuracy", "over_refusal", "incoherent", "retention")
    return asdict(cell) | {"novel": cell.novel} | {key: measured.metrics[key] for key in keys} | {"seconds": seconds}


def _finetune(output: Path, model: Path, cell: Cell) -> tuple[float, Path]:
    """Seconds of training, and where the result is."""
    upload = build_rows("user", NUM_ROWS, seed=cell.seed, task=cell.task, poison_ratio=cell.poison_ratio)
    rows = upload.rows
    if cell.finetuning == "oracle":
        rows = [row for row, truth in zip(rows, upload.truth, strict=True) if not truth["is_harmful"]]
    curve = cell.headline and cell.seed == SEEDS[0] and cell.poison_ratio > 0
    steps = -(-len(rows) // 16) * cell.epochs
    result = finetune(
        model,
        data=rows,
        defence="sft" if cell.finetuning == "oracle" else cell.finetuning,
        regime=cell.regime,
        epochs=cell.epochs,
        seed=cell.seed,
        output=output,
        callbacks=[HarmfulScoreCurve(output.parent / f"{cell.name}-curve.json", max(1, steps // CURVE_POINTS))]
        if curve
        else [],
    )
    assert result.model is not None
    return result.seconds, result.model
