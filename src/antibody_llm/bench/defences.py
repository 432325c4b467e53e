"""Every defence under the same attack: which cells, what a row says, and the file that grows row by row.

    fine-tuning stage   the defence on the alignments sft and antibody
    alignment stage     plain fine-tuning of a model that the defence aligned
    post stage          repair of the model that sft + sft made
    oracle              plain SFT on the truly benign rows only, on both alignments

``sft`` and the oracle are always among them: every other row is read against theirs. So are, where a defence has parts
that can be had alone, its ``COMPANIONS``; any name of ``VARIANTS`` (cell.py) can be asked for.

A row is that of the demonstration, and

    defence, stage      what is under test
    task                familiar or novel
    budget              default (4 epochs) or long (20)
    seconds             wall time of the training (or repair) under test; of a killed run, since it went on
    cost_ratio          CPU time of one optimiser step under the defence over one of plain SFT of the same stage,
                        alignment, task, poison ratio, budget and seed, in the same run, on one thread each: means over
                        all steps. Of a repair: 1 + its seconds over those of the fine-tuning that it follows
    error               instead of the measures: why there are none
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
from ..parsing import nearest
from ..settings import Regime
from .cell import EPOCHS, LONG, VARIANTS, Cell, Job, Told
from .matrix import CarryOut, all_jobs, carried_out
from .matrix import carry_out as in_earnest

RESULTS = "results.json"
TASKS = ("familiar", "novel")
BUDGETS = {"default": EPOCHS, "long": LONG}
ALIGNMENTS = ("sft", "antibody")
"""Under which fine-tuning defences are tried."""
REGIMES: tuple[Regime, ...] = ("full", "lora")
BASELINES = ("sft", "oracle")
_NAMES = list(dict.fromkeys(name for _, name in CATALOGUE))
COMPANIONS = {"antibody-posterior": ("sft-rehearsal", "antibody-posterior-no-rehearsal")}
"""What shows which part of a defence does the work."""


@dataclass(frozen=True)
class Entry:
    """A row to come: a defence, and the cell that measures it. One cell may serve two defences of different stages."""

    defence: str
    stage: Stage
    budget: str
    cell: Cell

    @property
    def baseline(self) -> Cell:
        """Plain SFT instead of the defence; all else the same."""
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
    seeds: int = 3,
    seeds_at: Mapping[float, int] | None = None,
) -> list[Entry]:
    """All rows, seed by seed, the baselines of each setting first.

    Args:
        only: Names in the catalogue, of whatever stage, or in ``VARIANTS``; by default the whole catalogue.
        tasks: Among ``TASKS``.
        poison_ratios: Harmful shares of the upload, 0 to 1.
        budgets: Among ``BUDGETS``.
        alignments: Among ``ALIGNMENTS``; only fine-tuning defences obey.
        regime: Of alignment and fine-tuning.
        learning_rate: Of the fine-tuning; by default the lab's.
        seeds: How many, from 0.
        seeds_at: How many where it differs, by poison ratio.

    Raises:
        ConfigError: nothing of that name, or a number out of its range.
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
            ),
        )
    ]


def _check_names(
    only: Sequence[str], tasks: Sequence[str], budgets: Sequence[str], alignments: Sequence[str], regime: str
) -> None:
    """Refuse what is not among the names of its kind."""
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
            raise ConfigError(f"--poison-ratios: {ratio} is not a share; it lies between 0 and 1.")
        if count < 1:
            raise ConfigError(f"--seeds is {count}: at least one is needed.")
    if learning_rate is not None and learning_rate <= 0:
        raise ConfigError(f"--learning-rate is {learning_rate}: it must be above 0.")


def _setting(chosen: set[str], alignments: Sequence[str], budget: str, plain: Cell) -> list[Entry]:
    """Rows beside ``plain``, which is sft + sft of one task, poison ratio, budget and seed."""
    entries = []
    for alignment in alignments:
        aligned = replace(plain, alignment=alignment)
        entries += [
            Entry("sft", Stage.FINETUNING, budget, aligned),
            Entry("oracle", Stage.FINETUNING, budget, _oracle(aligned)),
        ]
    for stage, name in (*CATALOGUE, *((Stage.FINETUNING, variant) for variant in VARIANTS)):
        if name not in chosen or (stage is Stage.FINETUNING and name == "sft"):
            continue
        if stage is Stage.ALIGNMENT and name == "sft" and name not in alignments:
            continue  # a baseline of what stands on it alone
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


def _oracle(cell: Cell) -> Cell:
    """SFT itself where every row is benign; the aligned model as it is where none is."""
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
    """Carry out what is planned; ``results.json`` is written anew after every row.

    Args:
        entries: Of ``plan``.
        output: Where everything goes; what is complete there already is not run again.
        flags: What planned the entries, for whoever repeats it.
        jobs: Processes; by default one per core.
        progress: Called with (what came to its end, how many have, number of all).
        carry_out: What is done with each job.

    Returns:
        {"flags": [flags], "rows": [...], "seconds": wall time of this call, "complete": bool}.
    """
    started = time.monotonic()
    folder = Path(output)
    planned = all_jobs(cell for entry in entries for cell in (entry.cell, entry.baseline))
    told: dict[Job, Told] = {}
    errors: dict[Job, str] = {}
    results: dict[str, Any] = {}
    for number, done in enumerate(carried_out(folder / "cells", planned, processes=jobs, carry_out=carry_out), 1):
        if done.error is None:
            told[done.job] = done.told
        else:
            errors[done.job] = f"{type(done.error).__name__}: {done.error}"
        rows = [row for entry in entries if (row := row_of(entry, told, errors)) is not None]
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


def row_of(entry: Entry, told: Mapping[Job, Told], errors: Mapping[Job, str]) -> dict[str, Any] | None:
    """The row of an entry; None while something of it is still to come."""
    cell = entry.cell
    head = {"defence": entry.defence, "stage": str(entry.stage), "budget": entry.budget}
    if cell in errors:
        return head | cell.described() | {"error": errors[cell]}
    if cell not in told or not (entry.baseline in told or entry.baseline in errors):
        return None
    row = head | cell.row(told[cell]) | {"cost_ratio": _cost_ratio(entry, told)}
    if entry.stage is Stage.ALIGNMENT:
        row["seconds"] = told[cell.aligned]["seconds"]
    return row


def _cost_ratio(entry: Entry, told: Mapping[Job, Told]) -> float | None:
    """None where nothing was trained, or where plain SFT failed."""
    ours, theirs = told[entry.cell], told.get(entry.baseline)
    if theirs is None:
        return None
    if entry.stage is Stage.POST:
        return 1 + ours["seconds"] / theirs["seconds"]
    if entry.stage is Stage.ALIGNMENT:
        ours, theirs = told[entry.cell.aligned], told[entry.baseline.aligned]
    if "cpu_seconds_per_step" not in ours:
        return None
    return ours["cpu_seconds_per_step"] / theirs["cpu_seconds_per_step"]
