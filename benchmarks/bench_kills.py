"""Kills a matrix at random, runs it on a cluster, and runs it without sharing alignments: the numbers must be the same.

    python benchmarks/bench_kills.py --work DIR --output benchmarks/results/bench_kills.json [--kills 5] [--seed 0]

On the preset lab-slice, 24 cells on two alignments, each part in a folder of its own below DIR:

    undisturbed   one process
    killed        the same, its command ended by SIGKILL after a random number of new results and a random time, as
                  often as is asked for; then once more to the end
    ray           a Ray cluster of this machine with two worker processes, one of which gets a SIGKILL in the middle
    naive         a loop over the cells that aligns the model for each of them

No finished result may be lost or changed, a kill may cost what was running and no more (each job notes who began it),
and every table must be that of the undisturbed run. What sharing saves is said in processor time, which other work on
the machine changes little; a part that is complete is not run again.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from benchmarks.clusters import ray_cluster

from antibody_llm.bench.matrix_file import read_matrix
from antibody_llm.bench.outputs import MARKDOWN, PARQUET
from antibody_llm.bench.plan import Plan, make_plan
from antibody_llm.bench.results import LOCKS, RESULTS
from antibody_llm.bench.work import carry_out
from antibody_llm.files import write_text

PRESET = "lab-slice"
TIMINGS = ("seconds", "cpu_seconds")
ROOT = Path(__file__).resolve().parents[1]


def started(folder: Path, *flags: str) -> "subprocess.Popen[bytes]":
    """The command, in a session of its own."""
    words = ["-m", "antibody_llm.cli.main", "bench", PRESET, "--output", str(folder), *flags]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        return subprocess.Popen([sys.executable, *words], stdout=log, stderr=log, cwd=ROOT, start_new_session=True)


def finished(folder: Path) -> dict[str, bytes]:
    """Every result that is there, with its content."""
    return {file.name: file.read_bytes() for file in (folder / RESULTS).glob("*.json")}


def begun(folder: Path) -> dict[str, int]:
    """How often each job was begun."""
    return {file.name: len(file.read_text().splitlines()) for file in (folder / LOCKS).iterdir()}


def table(folder: Path) -> dict[str, Any]:
    """The table that a run ends with, timings aside."""
    columns = pq.read_table(folder / PARQUET).to_pydict()
    numbers = {name: values for name, values in columns.items() if name not in TIMINGS}
    return numbers | {"text": (folder / MARKDOWN).read_text(encoding="utf-8")}


def to_the_end(folder: Path, *flags: str) -> float:
    """Run the command until it is done; returns the seconds that it took."""
    begin = time.monotonic()
    code = started(folder, *flags).wait()
    if code != 0:
        sys.exit(f"{folder}: ended with {code}: {(folder.parent / f'{folder.name}.log').read_text()[-2000:]}")
    return time.monotonic() - begin


def waited(process: "subprocess.Popen[bytes]", holds: Callable[[], bool]) -> bool:
    """Whether it came to hold before the process ended."""
    while process.poll() is None:
        if holds():
            return True
        time.sleep(0.02)
    return False


def killed(folder: Path, *, kills: int, draw: random.Random) -> dict[str, Any]:
    """Kill the command again and again, then run it to the end."""
    lost, changed, times = 0, 0, []
    before = finished(folder)
    for _ in range(kills):
        process = started(folder, "--jobs", "1")
        wanted, extra = len(before) + draw.randint(1, 4), draw.uniform(0.0, 6.0)
        assert waited(process, lambda: len(finished(folder)) >= wanted), "it ended before it was killed"  # noqa: B023
        time.sleep(extra)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(1.0)  # its workers end with it
        after = finished(folder)
        lost += len(before.keys() - after.keys())
        changed += sum(after.get(name) != content for name, content in before.items())
        times.append({"results": len(after), "seconds_after_the_last": round(extra, 2)})
        before = after
    to_the_end(folder, "--jobs", "1")
    after = finished(folder)
    changed += sum(after.get(name) != content for name, content in before.items())
    counts = begun(folder)
    return {"kills": times, "lost": lost, "changed": changed, "begun_again": sum(counts.values()) - len(counts)}


def on_ray(folder: Path, scratch: Path, *, draw: random.Random) -> dict[str, Any]:
    """Run on a cluster of two worker processes, and kill one of them while it has a cell."""
    begin = time.monotonic()
    with ray_cluster(scratch, cpus=2) as address:
        process = started(folder, "--ray", address)
        wanted = draw.randint(6, 16)
        assert waited(process, lambda: len(finished(folder)) >= wanted), "it ended before a worker was killed"
        working = workers(folder)
        assert waited(process, lambda: bool(working or working.extend(workers(folder)) or working))
        os.kill(working[0], signal.SIGKILL)
        assert process.wait() == 0, "the command failed"
    counts = begun(folder)
    return {
        "worker_processes": 2,
        "killed_with_results": wanted,
        "begun_again": sum(counts.values()) - len(counts),
        "seconds": round(time.monotonic() - begin, 1),
    }


def workers(folder: Path) -> list[int]:
    """Processes that have a job now: those that began one which is not finished."""
    done = {name.removesuffix(".json") for name in finished(folder)}
    pids = [
        int(file.read_text().splitlines()[-1].split()[0])
        for file in (folder / LOCKS).iterdir()
        if file.name not in done and file.stat().st_size
    ]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def naive(plan: Plan, folder: Path) -> dict[str, Any]:
    """Align for each cell; returns the processor time of all."""
    seconds, wall = 0.0, 0.0
    for job in dict.fromkeys(cell.job for cell in plan.cells):
        own = folder / job.key
        for part in (job.needs, job):
            values = carry_out(own, part)
            seconds += values["cpu_seconds"]
            wall += values["seconds"]
    return {"cpu_seconds": seconds, "seconds": wall}


def times(folder: Path) -> dict[str, float]:
    """The time of all jobs of a folder."""
    stored = [json.loads(content)["values"] for content in finished(folder).values()]
    return {name: sum(values[name] for values in stored) for name in TIMINGS}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kill a matrix, run it on a cluster, and without sharing.")
    parser.add_argument("--work", type=Path, required=True, help="folder for every run")
    parser.add_argument("--output", type=Path, required=True, help="the results, JSON")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument(
        "--scratch", type=Path, default=Path(tempfile.gettempdir()) / "antibody-ray", help="a short path, for Ray"
    )
    options = parser.parse_args(arguments)
    plan, work = make_plan(read_matrix(PRESET)), options.work
    results: dict[str, Any] = {
        "preset": PRESET,
        "cells": len(plan.cells),
        "alignments": len(plan.jobs) - len(plan.cells),
    }

    def part(name: str, run: Callable[[Path], dict[str, Any]]) -> None:
        file = work / f"{name}.json"
        if not file.exists():
            write_text(file, json.dumps(run(work / name)) + "\n")
        results[name] = json.loads(file.read_text(encoding="utf-8"))
        print(name, json.dumps(results[name]), flush=True)

    work.mkdir(parents=True, exist_ok=True)
    draw = random.Random(options.seed)
    part("undisturbed", lambda folder: {"seconds": to_the_end(folder, "--jobs", "1")} | {"of_jobs": times(folder)})
    part("killed", lambda folder: killed(folder, kills=options.kills, draw=draw))
    part("ray", lambda folder: on_ray(folder, options.scratch, draw=draw))
    part("naive", lambda folder: naive(plan, folder))
    wanted = table(work / "undisturbed")
    for name in ("killed", "ray"):
        results[name]["same_table"] = table(work / name) == wanted
    shared, alone = results["undisturbed"]["of_jobs"]["cpu_seconds"], results["naive"]["cpu_seconds"]
    results["cells_per_cpu_hour"] = {
        "shared": round(3600 * len(plan.cells) / shared, 1),
        "naive": round(3600 * len(plan.cells) / alone, 1),
        "ratio": round(alone / shared, 2),
    }
    kept = all(results[name]["same_table"] for name in ("killed", "ray"))
    kept &= not results["killed"]["lost"] and not results["killed"]["changed"]
    kept &= results["killed"]["begun_again"] <= options.kills and results["ray"]["begun_again"] <= 1
    results["holds"] = kept
    write_text(options.output, json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
