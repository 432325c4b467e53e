"""Every defence under the same attack: the cells, the rows of results.json, and the file that grows row by row.

    fine-tuning stage   the defence on the alignments sft and antibody
    alignment stage     plain fine-tuning of a model that the defence aligned
    post stage          repair of the model that sft + sft made
    oracle              plain SFT on the truly benign rows only, on both alignments

``sft`` and the oracle are always among them, since every other row is compared with theirs. So are a defence's
``COMPANIONS``, which have a part of it alone; any name of ``VARIANTS`` (cell.py) can be chosen.

A row has the fields of the demonstration's, and

    defence, stage      what is under test
    task                familiar or novel
    budget              default (4 epochs) or long (20)
    seconds             wall time of the training (or repair) under test; of a killed run, since it resumed
    cost_ratio          CPU time of one optimiser step under the defence over one of plain SFT of the same stage,
                        alignment, task, poison ratio, budget and seed, in the same run, on one thread each: means over
                        all steps. For a repair: 1 + its seconds over those of the fine-tuning that it follows
    error               the reason why there are no measures, in their place
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data.roles import Stage
from ..defences.catalogue import CATALOGUE
from ..errors import ConfigError
from ..files import write_text
from ..lab.world import REPORT, Purpose
from ..parsing import nearest
from ..settings import Regime
from .cell import EPOCHS, LONG, VARIANTS, Cell, Figures, Job
from .cell import carry_out as in_earnest
from .matrix import CarryOut, all_jobs, carried_out

RESULTS = "results.json"
TASKS = ("familiar", "novel")
BUDGETS = {"default": EPOCHS, "long": LONG}
ALIGNMENTS = ("sft", "antibody")
"""The alignments on which fine-tuning defences are tried."""
REGIMES: tuple[Regime, ...] = ("full", "lora")
BASELINES = ("sft", "oracle")
_NAMES = list(dict.fromkeys(name for _, name in CATALOGUE))
COMPANIONS = {"antibody-posterior": ("sft-rehearsal", "antibody-posterior-no-rehearsal")}
"""The rows that show which part of a defence has the effect."""


@dataclass(frozen=True)
class Entry:
    """A planned row: a defence, and the cell that measures it. One cell may serve two defences of different stages."""

    defence: str
    stage: Stage
    budget: str
    cell: Cell

    @property
    def baseline(self) -> Cell:
        """The cell with plain SFT instead of the defence, and everything else the same."""
        match self.stage:
            case Stage.ALIGNMENT:
                return replace(self.cell, alignment="sft")
            case Stage.FINETUNING:
                return replace(self.cell, finetuning="sft", epochs=BUDGETS[self.budget])
            case Stage.POST:
                return replace(self.cell, post="none")


def plan(
    *,
    only: Sequence[str] | None = None,
    tasks: Sequence[str] = TASKS,
    poison_ratios: Sequence[float] = (0.2,),
    budgets: Sequence[str] = ("default",),
    alignments: Sequence[str] = ALIGNMENTS,
    regime: Regime = "full",
    learning_rate: float | None = None,
    purpose: Purpose | None = REPORT,
    seeds: int = 3,
    seeds_at: Mapping[float, int] | None = None,
) -> list[Entry]:
    """Plan all rows, seed by seed, with the baselines of each setting first.

    Args:
        only: Names in the catalogue, of any stage, or in ``VARIANTS``; by default the whole catalogue.
        tasks: Names among ``TASKS``.
        poison_ratios: Harmful shares of the upload, 0 to 1.
        budgets: Names among ``BUDGETS``.
        alignments: Names among ``ALIGNMENTS``; they concern fine-tuning defences only.
        regime: The regime of alignment and fine-tuning.
        learning_rate: The learning rate of the fine-tuning; by default the lab's.
        purpose: The half of the lab's world that uploads and prompts are of; None is all of it.
        seeds: The number of seeds, from 0.
        seeds_at: The number of seeds at poison ratios where it differs.

    Raises:
        ConfigError: a name is unknown, or a number is out of its range.
    """
    _check_names(only or (), tasks, budgets, alignments, regime)
    counts = {ratio: (seeds_at or {}).get(ratio, seeds) for ratio in poison_ratios}
    _check_numbers(counts, learning_rate)
    chosen = {*_NAMES, "oracle"} if only is None else {*only, *BASELINES}
    chosen |= {companion for name in chosen for companion in COMPANIONS.get(name, ())}
    return [
        entry
        for seed in range(max(counts.values(), default=0))
        for task in tasks
        for ratio, count in counts.items()
        for budget in budgets
        if seed < count
        for entry in _setting(
            chosen,
            alignments,
            budget,
            Cell(
                alignment="sft",
                finetuning="sft",
                regime=regime,
                task=task,
                poison_ratio=ratio,
                epochs=BUDGETS[budget],
                seed=seed,
                learning_rate=learning_rate,
                purpose=purpose,
            ),
        )
    ]


def _check_names(
    only: Sequence[str], tasks: Sequence[str], budgets: Sequence[str], alignments: Sequence[str], regime: str
) -> None:
    """Refuse names that are not among those of their kind."""
    choices: tuple[tuple[str, Sequence[str], Sequence[str]], ...] = (
        ("--only", only, [*_NAMES, *VARIANTS, "oracle"]),
        ("--tasks", tasks, list(TASKS)),
        ("--budgets", budgets, list(BUDGETS)),
        ("--alignments", alignments, list(ALIGNMENTS)),
        ("--regime", [regime], REGIMES),
    )
    for kind, given, known in choices:
        for name in given:
            if name not in known:
                raise ConfigError(
                    f"{kind}: there is no '{name}'{nearest(name, list(known))} There are: {', '.join(known)}."
                )


def _check_numbers(counts: Mapping[float, int], learning_rate: float | None) -> None:
    """Refuse numbers out of their range; ``counts`` has the seeds by poison ratio."""
    for ratio, count in counts.items():
        if not 0 <= ratio <= 1:
            raise ConfigError(f"--poison-ratios: {ratio} is not a share. Give a number between 0 and 1.")
        if count < 1:
            raise ConfigError(f"--seeds is {count}: at least one is needed.")
    if learning_rate is not None and learning_rate <= 0:
        raise ConfigError(f"--learning-rate is {learning_rate}: it must be above 0.")


def _setting(chosen: set[str], alignments: Sequence[str], budget: str, plain: Cell) -> list[Entry]:
    """The rows that are compared with ``plain``, which is sft + sft of one task, poison ratio, budget and seed."""
    entries = []
    for alignment in alignments:
        aligned = replace(plain, alignment=alignment)
        entries += [
            Entry("sft", Stage.FINETUNING, budget, aligned),
            Entry("oracle", Stage.FINETUNING, budget, _oracle(aligned)),
        ]
    for stage, name in (*CATALOGUE, *((_stage_of(variant), variant) for variant in VARIANTS)):
        if name not in chosen or (stage is Stage.FINETUNING and name == "sft"):
            continue
        if stage is Stage.ALIGNMENT and name == "sft" and name not in alignments:
            continue  # its row would be the baseline of an alignment without other rows
        match stage:
            case Stage.ALIGNMENT:
                entries.append(Entry(name, stage, budget, replace(plain, alignment=name)))
            case Stage.FINETUNING:
                entries += [
                    Entry(name, stage, budget, replace(plain, alignment=alignment, finetuning=name))
                    for alignment in alignments
                ]
            case Stage.POST:
                entries.append(Entry(name, stage, budget, replace(plain, post=name)))
    return entries


def _stage_of(variant: str) -> Stage:
    return Stage.POST if (Stage.POST, VARIANTS[variant][0]) in CATALOGUE else Stage.FINETUNING


def _oracle(cell: Cell) -> Cell:
    """The oracle's cell: SFT itself if every row is benign, the aligned model as it is if none is."""
    if cell.poison_ratio == 0:
        return cell
    return replace(cell, finetuning="none", epochs=0) if cell.poison_ratio == 1 else replace(cell, finetuning="oracle")


def run_defences(
    entries: Sequence[Entry],
    *,
    output: str | Path,
    flags: str = "",
    jobs: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    carry_out: CarryOut = in_earnest,
) -> dict[str, Any]:
    """Run everything that is planned, and write ``results.json`` again after every row.

    Args:
        entries: The rows that ``plan`` returned.
        output: The folder of all runs; those that are complete are not run again.
        flags: The flags that planned the entries, so that the run can be repeated.
        jobs: The number of processes; by default one per core.
        progress: A function that is called with (name of a finished job, number finished, number of all).
        carry_out: The function that runs each job.

    Returns:
        {"flags": [flags], "rows": [...], "seconds": wall time of this call, "complete": bool}.
    """
    started = time.monotonic()
    folder = Path(output)
    planned = all_jobs(cell for entry in entries for cell in (entry.cell, entry.baseline))
    figures: dict[Job, Figures] = {}
    errors: dict[Job, str] = {}
    results: dict[str, Any] = {}
    for number, done in enumerate(carried_out(folder / "cells", planned, processes=jobs, carry_out=carry_out), 1):
        if done.error is None:
            figures[done.job] = done.figures
        else:
            errors[done.job] = f"{type(done.error).__name__}: {done.error}"
        rows = [row for entry in entries if (row := row_of(entry, figures, errors)) is not None]
        results = {
            "flags": [flags],
            "rows": rows,
            "seconds": time.monotonic() - started,
            "complete": number == len(planned),
        }
        write_text(folder / RESULTS, json.dumps(results, indent=2) + "\n")
        if progress is not None:
            progress(done.job.name + (" FAILED" if done.error else ""), number, len(planned))
    return results


def row_of(entry: Entry, figures: Mapping[Job, Figures], errors: Mapping[Job, str]) -> dict[str, Any] | None:
    """The row of an entry; None while a part of it is missing."""
    cell = entry.cell
    head = {"defence": entry.defence, "stage": str(entry.stage), "budget": entry.budget}
    if cell in errors:
        return head | cell.described() | {"error": errors[cell]}
    if cell not in figures or not (entry.baseline in figures or entry.baseline in errors):
        return None
    row = head | cell.row(figures[cell]) | {"cost_ratio": _cost_ratio(entry, figures)}
    if entry.stage is Stage.ALIGNMENT:
        row["seconds"] = figures[cell.aligned]["seconds"]
    return row


def _cost_ratio(entry: Entry, figures: Mapping[Job, Figures]) -> float | None:
    """The cost of an entry over its baseline's; None if nothing was trained, or if plain SFT failed."""
    ours, theirs = figures[entry.cell], figures.get(entry.baseline)
    if theirs is None:
        return None
    if entry.stage is Stage.POST:
        return 1 + ours["seconds"] / theirs["seconds"]
    if entry.stage is Stage.ALIGNMENT:
        ours, theirs = figures[entry.cell.aligned], figures[entry.baseline.aligned]
    if "cpu_seconds_per_step" not in ours:
        return None
    return ours["cpu_seconds_per_step"] / theirs["cpu_seconds_per_step"]
