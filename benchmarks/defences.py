"""Every defence under the same attack, on the lab.

    python benchmarks/defences.py --output DIR [--only NAME,...] [--tasks familiar,novel] [--poison-ratios 0,0.05:1,0.2]
                                  [--budgets default,long] [--alignments sft,antibody] [--regime full]
                                  [--learning-rate X] [--seeds 3] [--purpose report] [--jobs N]
    python benchmarks/defences.py --report DIR/results.json ... [--before RESULTS] --write docs/defences.md
    python benchmarks/defences.py --report DIR/results.json ... --grid TITLE --write FILE

A poison ratio may name its own number of seeds: 0.05:1. The first writes ``DIR/results.json``, again after every row;
its rows are described in ``src/antibody_llm/bench/defences.py``. Killed, the same command goes on where it was. A
defence that fails leaves a row with ``error``, and the exit code is 1. The second writes the tables for people, of one
results file or of several, and with ``--before`` what differs from an older file; the third those of a sweep over
poison ratios.

Uploads and prompts are of the half of the lab's world for ``report``, and rows say so (``purpose``); ``--purpose
whole`` takes all of it, as in the older ``benchmarks/results/defences_whole_world.json``. No table has rows of both.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["OMP_NUM_THREADS"] = "1"  # one thread for each process

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from antibody_llm.bench.defences import ALIGNMENTS, BUDGETS, REGIMES, TASKS, plan, run_defences
from antibody_llm.bench.defences_report import grid, markdown, merged
from antibody_llm.bench.purpose import WHOLE
from antibody_llm.errors import AntibodyError
from antibody_llm.lab.world import PURPOSES, REPORT
from antibody_llm.store.folder import write_text


def names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def ratios(text: str) -> dict[float, int | None]:
    """Poison ratio to its number of seeds, where it has one of its own."""
    parts = [part.partition(":") for part in names(text)]
    return {float(ratio): int(count) if count else None for ratio, _, count in parts}


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Every defence under the same attack, on the lab.")
    parser.add_argument("--output", type=Path, help="folder for every run and results.json")
    parser.add_argument("--only", type=names, help="defences of any stage  [default: all]")
    parser.add_argument("--tasks", type=names, default=list(TASKS), help="[default: familiar,novel]")
    parser.add_argument("--poison-ratios", type=ratios, default={0.2: None}, help="[default: 0.2]")
    parser.add_argument("--budgets", type=names, default=["default"], help=f"of {', '.join(BUDGETS)}")
    parser.add_argument(
        "--alignments", type=names, default=list(ALIGNMENTS), help="under fine-tuning defences  [default: sft,antibody]"
    )
    parser.add_argument("--regime", choices=REGIMES, default="full", help="[default: full]")
    parser.add_argument("--learning-rate", type=float, help="of the fine-tuning  [default: the lab's]")
    parser.add_argument("--seeds", type=int, default=3, help="how many  [default: 3]")
    parser.add_argument(
        "--purpose", choices=[*PURPOSES, WHOLE], default=REPORT, help="half of the world  [default: report]"
    )
    parser.add_argument("--jobs", type=int, help="processes of one thread  [default: one per core]")
    parser.add_argument("--report", type=Path, nargs="+", metavar="RESULTS", help="results.json to make tables of")
    parser.add_argument("--write", type=Path, metavar="FILE", help="where the tables go  [default: stdout]")
    parser.add_argument("--grid", metavar="TITLE", help="a column for each poison ratio, under this title")
    parser.add_argument("--before", type=Path, metavar="RESULTS", help="older results.json to list differences from")
    options = parser.parse_args(arguments)
    if options.before is not None and (options.report is None or options.grid is not None):
        parser.error("--before goes with --report, and without --grid")
    for file in [*(options.report or []), *([options.before] if options.before else [])]:
        if not file.is_file():
            parser.error(f"{file}: there is no such file of results")
    if (options.output is None) == (options.report is None):
        parser.error("give --output DIR to run, or --report RESULTS to make tables")
    if options.jobs is not None and options.jobs < 1:
        parser.error("--jobs must be 1 or more")
    return options


def flags(options: argparse.Namespace) -> str:
    """What plans the same rows again."""
    poison = ",".join(f"{p:g}" if count is None else f"{p:g}:{count}" for p, count in options.poison_ratios.items())
    said = {
        "only": options.only and ",".join(options.only),
        "tasks": ",".join(options.tasks),
        "poison-ratios": poison,
        "budgets": ",".join(options.budgets),
        "alignments": ",".join(options.alignments) if options.alignments != list(ALIGNMENTS) else None,
        "regime": options.regime if options.regime != "full" else None,
        "learning-rate": options.learning_rate,
        "seeds": options.seeds,
        "purpose": options.purpose if options.purpose != REPORT else None,
    }
    return " ".join(f"--{name} {value}" for name, value in said.items() if value)


def read(files: Sequence[Path]) -> dict[str, Any]:
    """One results file, or several as one."""
    return merged([json.loads(file.read_text(encoding="utf-8")) for file in files])


def page(options: argparse.Namespace) -> str:
    """The page of the results that are named."""
    results = read(options.report)
    if options.grid is not None:
        return grid(results, options.grid)
    return markdown(results, None if options.before is None else read([options.before]))


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    try:
        if options.report is not None:
            text = page(options)
            if options.write is None:
                print(text, end="")
            else:
                write_text(options.write, text)
            return 0
        entries = plan(
            only=options.only,
            tasks=options.tasks,
            poison_ratios=list(options.poison_ratios),
            budgets=options.budgets,
            alignments=options.alignments,
            regime=options.regime,
            learning_rate=options.learning_rate,
            purpose=None if options.purpose == WHOLE else options.purpose,
            seeds=options.seeds,
            seeds_at={ratio: count for ratio, count in options.poison_ratios.items() if count is not None},
        )
    except AntibodyError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    results = run_defences(
        entries,
        output=options.output,
        flags=flags(options),
        jobs=options.jobs,
        progress=lambda what, done, total: print(f"[{done}/{total}] {what}", file=sys.stderr, flush=True),
    )
    failed = [row for row in results["rows"] if "error" in row]
    for row in failed:
        print(f"{row['stage']} {row['defence']}, seed {row['seed']}: {row['error']}", file=sys.stderr)
    print(f"{len(results['rows'])} rows in {results['seconds']:.0f} s: {options.output / 'results.json'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
