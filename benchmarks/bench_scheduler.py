"""What a matrix of ten thousand cells costs beside the cells: lab-core with many seeds, whose jobs only sleep.

    python benchmarks/bench_scheduler.py --work DIR --output benchmarks/results/bench_scheduler.json [--cells 10000]

The plan, the locks, the result files and the order are those of a real run; a job holds its lock, sleeps, and writes a
result. On a Ray cluster of this machine, and on processes of this machine. Reported per job: wall time beyond sleeping,
as if each worker had only slept, and the processor time of the driver alone. An alignment is a job too.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.clusters import ray_cluster

from antibody_llm.bench.job import Job
from antibody_llm.bench.matrix_file import read_matrix
from antibody_llm.bench.plan import Plan, make_plan
from antibody_llm.bench.pools.ray import on_ray
from antibody_llm.bench.results import Results
from antibody_llm.bench.run import MakePool, local, run_plan
from antibody_llm.files import write_text

PRESET = "lab-core"
SLEEP = 0.02
"""Seconds of a job."""


def sleep(folder: Path, job: Job) -> dict[str, Any]:
    """A job that sleeps in place of its work."""
    results = Results(folder)
    with results.locked(job):
        time.sleep(SLEEP)
        values = {"seconds": SLEEP, "cpu_seconds": 0.0}
        results.write(job, values)
    return values


def planned(cells: int) -> tuple[Plan, float]:
    """A plan of at least so many cells, and the seconds that making it took."""
    matrix = read_matrix(PRESET)
    of_a_seed = len(make_plan(replace(matrix, seeds=(0,))).cells)
    begin = time.monotonic()
    plan = make_plan(replace(matrix, seeds=tuple(range(-(-cells // of_a_seed)))))
    return plan, time.monotonic() - begin


def timed(plan: Plan, folder: Path, make_pool: MakePool, workers: int) -> dict[str, Any]:
    """Run every job; the time of a job beyond its sleep."""
    # The first job waits for its process to start, which is no cost of a job.
    run_plan(
        replace(plan, cells=plan.cells[:1]), folder.with_name(f"{folder.name}-warm"), make_pool=make_pool, work=sleep
    )
    begin, cpu = time.monotonic(), time.process_time()
    found = run_plan(plan, folder, make_pool=make_pool, work=sleep)
    seconds, driver = time.monotonic() - begin, time.process_time() - cpu
    jobs = len(plan.jobs)
    assert len(found.values) == jobs, found.errors
    return {
        "workers": workers,
        "jobs": jobs,
        "seconds": round(seconds, 1),
        "ms_per_job_beyond_its_sleep": round(1000 * (seconds * workers - jobs * SLEEP) / jobs, 2),
        "driver_cpu_ms_per_job": round(1000 * driver / jobs, 2),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What a matrix costs beside its cells.")
    parser.add_argument("--work", type=Path, required=True, help="folder for the results of the jobs; new")
    parser.add_argument("--output", type=Path, required=True, help="the results, JSON")
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--scratch", type=Path, default=Path(tempfile.gettempdir()) / "antibody-ray", help="a short path, for Ray"
    )
    options = parser.parse_args(arguments)
    plan, seconds = planned(options.cells)
    results: dict[str, Any] = {
        "preset": PRESET,
        "cells": len(plan.cells),
        "alignments": len(plan.jobs) - len(plan.cells),
        "sleep_seconds": SLEEP,
        "planning_ms_per_cell": round(1000 * seconds / len(plan.cells), 3),
    }
    with ray_cluster(options.scratch, cpus=options.workers) as address:
        on_cluster = on_ray(address, threads=1, gpus=0.0)
        results["ray"] = timed(plan, options.work / "ray", on_cluster, options.workers)
    print(json.dumps(results), flush=True)
    results["processes"] = timed(plan, options.work / "local", local(options.workers), options.workers)
    write_text(options.output, json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
