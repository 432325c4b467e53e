"""What reading an upload costs: rows from a file to tokens, with every check, beside another version of the library.

    python benchmarks/read_rows.py [--rows 100000] [--beside SRC] [--rounds 3] [--json]

Rows of the lab's upload are written as chat JSON Lines. Each measurement is a process of its own: ``load`` reads the
file as ``finetune`` does, ``stream`` goes through it once as ``screen`` does, and ``encode`` makes tokens of the loaded
rows and looks for spelled control tokens. Processor seconds (minimum over the rounds) and peak resident memory; with
--beside, the ``src`` folder of another version, the two alternate and their ratios are given.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MEASURE = """
import importlib, json, resource, sys, time
from pathlib import Path
kind, file, package = sys.argv[1:]

def room(name):
    return importlib.import_module(f"{package}.{name}")

def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

if kind == "stream":
    open_upload = room("screening.upload").open_upload
    before, began = memory(), time.process_time()
    num = sum(1 for _ in open_upload(file))
else:
    load_records = room("data.formats").load_records
    before, began = memory(), time.process_time()
    records = load_records(file)
    num = len(records)
    if kind == "encode":
        from importlib.resources import files
        from transformers import AutoTokenizer
        folder = str(files(package) / "lab/files/lab")
        render = room("data.encode").Renderer(AutoTokenizer.from_pretrained(folder), max_length=256)
        spelled = getattr(render, "spelled", lambda record: None)
        render.encode(records[0])
        began = time.process_time()
        for record in records:
            spelled(record)
            render.encode(record)
print(json.dumps({"seconds": time.process_time() - began, "megabytes": memory() - before, "rows": num}))
"""
KINDS = ("stream", "load", "encode")


def measured(kind: str, file: Path, source: Path) -> dict[str, float]:
    """One process."""
    environment = os.environ | {
        "PYTHONPATH": str(source),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    package = next(found.parent.name for found in source.glob("antibody*/__init__.py"))
    ended = subprocess.run(
        [sys.executable, "-c", MEASURE, kind, str(file), package],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(ended.stdout.splitlines()[-1]))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="What reading an upload costs.")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--beside", type=Path, help="the src folder of another version")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    here = Path(__file__).resolve().parents[1] / "src"
    sources = {"here": here} | ({"beside": options.beside.resolve()} if options.beside else {})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        from antibody_llm.lab.rows import build_rows

        made = build_rows("user", 2000, seed=0).rows
        with file.open("w", encoding="utf-8") as opened:
            for i in range(options.rows):
                row = made[i % len(made)]
                asked, said = (message["content"] for message in row["messages"])
                messages = [{"role": "user", "content": f"{asked} ({i})"}, {"role": "assistant", "content": said}]
                opened.write(json.dumps({"messages": messages}) + "\n")
        result: dict[str, Any] = {"rows": options.rows, "rounds": options.rounds}
        for kind in KINDS:
            rounds = [
                {name: measured(kind, file, source) for name, source in sources.items()} for _ in range(options.rounds)
            ]
            for name in sources:
                result[f"{kind}_{name}_seconds"] = round(min(r[name]["seconds"] for r in rounds), 2)
                result[f"{kind}_{name}_megabytes"] = round(max(r[name]["megabytes"] for r in rounds), 1)
            if options.beside:
                result[f"{kind}_ratio"] = round(result[f"{kind}_here_seconds"] / result[f"{kind}_beside_seconds"], 3)
    print(json.dumps(result, indent=None if options.json else 2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
