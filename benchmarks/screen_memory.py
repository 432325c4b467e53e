"""Peak memory and time of ``antibody screen`` on small and large uploads: it should hardly grow with the rows.

    python benchmarks/screen_memory.py [--num 100000] [--poison-ratio 0.05]

Each size is screened in a process of its own with an empty cache, by lab-aligned with its defaults. Uploads are lab
uploads of 1,000 rows each (one seed each, familiar task), one after the other; the lab's world is small, so each answer
gets a number, which makes all rows distinct and leaves their prompts, which the evidence reads, as they were. Memory is
the process's peak resident set; libraries, both models and one chunk of rows are in it, so that only the growth speaks
of the rows.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "screen_memory.json"
BLOCK, SMALL = 1_000, 10_000


def write_upload(file: Path, num: int, poison_ratio: float) -> float:
    """``num`` rows, in blocks; returns the harmful share."""
    from antibody_llm.lab.rows import build_rows

    num_harmful = 0
    with file.open("w", encoding="utf-8") as opened:
        for seed in range(num // BLOCK):
            block = build_rows("user", BLOCK, seed=seed, task="familiar", poison_ratio=poison_ratio)
            for number, row in enumerate(block.rows, seed * BLOCK):
                row["messages"][-1]["content"] += f" {number}"
                opened.write(json.dumps(row) + "\n")
            num_harmful += sum(entry["is_harmful"] for entry in block.truth)
    return num_harmful / num


def screened(upload: Path, output: Path) -> dict[str, Any]:
    """Screen in this process; what came out, and this process's peak memory."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    from antibody_llm.runs import screen

    result = screen(upload, "lab-aligned", output=output)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "num_rows": result.num_rows,
        "num_distinct": result.num_distinct,
        "peak_rss_mib": round(usage.ru_maxrss / 1024, 1),
        "seconds": round(result.seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "upload_mib": round(upload.stat().st_size / 2**20, 1),
        "estimated_harmful_share": result.estimated_harmful_share,
        "interval": result.interval,
        "verdict": result.verdict,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--num", type=int, default=100_000, help=f"rows of the large upload, a multiple of {BLOCK}")
    parser.add_argument("--poison-ratio", type=float, default=0.05)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--one", type=Path, nargs=2, metavar=("UPLOAD", "OUTPUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(screened(*given.one)))
        return
    if given.num % BLOCK or given.num <= SMALL:
        parser.error(f"--num is {given.num}: a multiple of {BLOCK} above {SMALL} is needed")
    runs = []
    for num in (SMALL, given.num):
        with tempfile.TemporaryDirectory() as folder:
            upload = Path(folder) / "upload.jsonl"
            share = write_upload(upload, num, given.poison_ratio)
            environment = {"OMP_NUM_THREADS": "1", **os.environ, "HF_HUB_OFFLINE": "1", "ANTIBODY_CACHE": folder}
            command = [sys.executable, __file__, "--one", str(upload), str(Path(folder) / "run")]
            printed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        runs.append(json.loads(printed.splitlines()[-1]) | {"harmful_share": share})
        print(json.dumps(runs[-1]), file=sys.stderr)
    small, large = runs
    growth = large["peak_rss_mib"] - small["peak_rss_mib"]
    results = {
        "runs": runs,
        "growth_mib": round(growth, 1),
        "growth_bytes_per_row": round(growth * 2**20 / (large["num_rows"] - small["num_rows"]), 1),
        "threads": int(os.environ.get("OMP_NUM_THREADS", "1")),
    }
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
