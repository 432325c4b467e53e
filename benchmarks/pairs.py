"""Attacks on pairs of answers beside plain mixing, trained by DPO, undefended and under antibody-posterior.

    antibody bench benchmarks/pairs.yaml --output DIR
    python benchmarks/pairs.py --read DIR [--output benchmarks/results/attacks_pairs.json]

The first command goes on where it was stopped. The page of attacks (benchmarks/attacks.py) has the figures.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from antibody_llm.bench.outputs import PARQUET
from antibody_llm.files import write_text

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
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--read", type=Path, metavar="DIR", required=True, help="folder of the matrix")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FILE", help="where its figures go")
    options = parser.parse_args(arguments)
    source = options.read / PARQUET
    if not source.is_file():
        parser.error(f"{source}: there is no such file; antibody bench writes it when it ends")
    lines = ",\n".join(f"  {json.dumps(row)}" for row in read(pq.read_table(source).to_pylist()))
    write_text(options.output, f'{{"rows": [\n{lines}\n]}}\n')
    return 0


if __name__ == "__main__":
    sys.exit(main())
