"""Attacks on pairs of answers beside plain mixing, trained by DPO, undefended and under antibody-posterior.

    antibody bench benchmarks/pairs.yaml --output DIR
    python benchmarks/pairs.py --read DIR [--output benchmarks/results/attacks_pairs.json]

The first command goes on where it was stopped. The page of attacks (benchmarks/attacks.py) has the figures.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from antibody_llm.bench.outputs import PARQUET
from kept import keep_or_show, row_a_line, rows_in

RESULTS = Path(__file__).resolve().parent / "results" / "attacks_pairs.json"
SHARES = ("harmful_score", "finetune_accuracy", "over_refusal")
NAMED = ("defence", "attack", "poison_ratio", "seed", "prompts", "error")


def read(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is kept of the rows of a matrix."""
    return [
        {name: row[name] for name in NAMED}
        | {name: None if row[name] is None else round(row[name], 4) for name in SHARES}
        for row in rows
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    return keep_or_show(
        arguments, doc=__doc__, results=RESULTS, left=PARQUET, keep=lambda folder: row_a_line(read(rows_in(folder)))
    )


if __name__ == "__main__":
    sys.exit(main())
