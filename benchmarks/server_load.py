"""Two hundred clients that poll and list while a job trains: their waiting times, and what they cost a training step.

    python benchmarks/server_load.py [--clients 200] [--seconds 30] [--pairs 5]

A worker and the job's process are pinned to one core, the server and all clients to another. Quiet phases and phases
with clients take turns. A client asks for its job and, after that, for the list of jobs, every five seconds, beginning
at a random moment; each has a connection of its own. Waiting times are of whole requests. Steps are counted from the
events of the job, without the first three seconds of each phase; the slowdown is of medians over phases. The job is the
lab's, 2,000 rows under ``sft``, all weights; the database is SQLite. Nothing but this machine's own address is asked.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx2
import openai
from sqlalchemy import select

from antibody_llm.files import write_text
from antibody_llm.lab.rows import build_rows
from antibody_llm.server.blobs import Blobs
from antibody_llm.server.database.engine import Database
from antibody_llm.server.database.tables import Event
from antibody_llm.server.defences import load_defences
from antibody_llm.server.loading import settings_of
from antibody_llm.server.queue import Queue
from antibody_llm.server.settings import DefenceSettings, OfferedModel, ServerSettings, WorkerSettings

RESULTS = Path(__file__).parent / "results" / "server_load.json"
EVERY, SETTLING, MOST_SECONDS = 5.0, 3.0, 900.0
SERVE = """
import json, sys
from contextlib import contextmanager
import antibody_llm.server.serve as serve
from antibody_llm.server.loading import settings_of

@contextmanager
def alone(context):  # no inference and no worker of its own: the training is on another core
    yield ()

serve.processes = alone
serve.serve(settings_of(json.load(sys.stdin)), lambda line: print(line, flush=True))
"""


def started(command: list[str], settings: ServerSettings, core: int | None, log: Path) -> "subprocess.Popen[str]":
    """A process that is given the settings, on one core where it is named."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("a") as errors:
        process = subprocess.Popen(
            [sys.executable, "-u", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            text=True,
        )
    if core is not None:
        os.sched_setaffinity(process.pid, {core})
    assert process.stdin is not None
    process.stdin.write(json.dumps(asdict(settings), default=str))
    process.stdin.close()
    return process


def ended(process: "subprocess.Popen[str]") -> None:
    """End a process and wait for it."""
    process.send_signal(signal.SIGKILL)
    process.wait()


async def clients(num: int, seconds: float, url: str, key: str, job: str) -> tuple[list[float], list[str]]:
    """Waiting times in milliseconds, and what went wrong."""
    waited: list[float] = []
    wrong: list[str] = []
    until = time.monotonic() + seconds
    limits = httpx2.Limits(max_connections=num, max_keepalive_connections=num)
    async with httpx2.AsyncClient(
        base_url=url, headers={"authorization": f"Bearer {key}"}, limits=limits, timeout=30
    ) as http:

        async def client(delay: float) -> None:
            due = time.monotonic() + delay
            while due < until:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                for path in (f"/fine_tuning/jobs/{job}", "/fine_tuning/jobs"):
                    asked = time.perf_counter()
                    try:
                        answer = await http.get(path)
                    except httpx2.HTTPError as error:
                        wrong.append(type(error).__name__)
                        continue
                    waited.append(1000 * (time.perf_counter() - asked))
                    if answer.status_code != 200:
                        wrong.append(str(answer.status_code))
                due += EVERY

        await asyncio.gather(*(client(random.uniform(0.0, EVERY)) for _ in range(num)))
    return waited, wrong


def step_ms(database: Database, job: str, begin: float, end: float) -> float:
    """Milliseconds of a step between two times."""
    with database.read() as session:
        query = select(Event.created_at, Event.data).where(Event.job_id == job, Event.type == "metrics")
        found = [(at, data["step"]) for at, data in session.execute(query.order_by(Event.seq)) if begin <= at <= end]
    if len(found) < 2:
        sys.exit(f"the job has reported {len(found)} steps in {end - begin:.0f} s: longer phases are needed")
    (first, low), (last, high) = found[0], found[-1]
    return float(1000 * (last - first) / (high - low))


def quantile(values: list[float], share: float) -> float:
    """The value below which a share of them lies."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30.0, help="of a phase")
    parser.add_argument("--pairs", type=int, default=5, help="of a quiet phase and one with clients")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("two cores are needed: one for training, one for the server and its clients")
    if given.clients > 1000 or 2 * given.pairs * given.seconds > MOST_SECONDS or given.seconds < 10:
        sys.exit(f"at most 1000 clients and {MOST_SECONDS:.0f} seconds in all, in phases of 10 seconds or more")
    training_core, serving_core = cores[0], cores[1]
    os.sched_setaffinity(0, {serving_core})
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        settings = ServerSettings(
            home=home,
            port=port,
            models=(OfferedModel(name="lab", path="lab-aligned"),),
            defence=DefenceSettings(name="sft"),
            worker=WorkerSettings(threads=1),
        )
        assert settings_of(json.loads(json.dumps(asdict(settings), default=str))) == settings
        load_defences(home)
        server = started(["-c", SERVE], settings, serving_core, home / "server.log")
        stack.callback(ended, server)
        key, url = "", f"http://127.0.0.1:{port}/v1"
        assert server.stdout is not None
        for line in server.stdout:
            key = key or (line.split()[-1] if "sk-operator-" in line else "")
            if line.startswith("http://"):
                break
        else:
            sys.exit(f"the server did not start: {(home / 'server.log').read_text()[-2000:]}")
        database, job = Database(settings.database_url), created(url, key)
        queue = Queue(database, Blobs(settings.blob_url))
        claimed = queue.claim("benchmark", statuses=["validating_files"])
        assert claimed is not None
        queue.screened(claimed)  # training is what is measured
        worker = started(["-m", "antibody_llm.server.worker"], settings, training_core, home / "worker.log")
        stack.callback(ended, worker)
        begun = time.monotonic()
        while step_count(database, job) < 3:
            if time.monotonic() > begun + 180 or worker.poll() is not None:
                sys.exit(f"the job does not train: {(home / 'worker.log').read_text()[-2000:]}")
            time.sleep(0.5)
        phases, waited, wrong = [], list[float](), list[str]()
        for number in range(2 * given.pairs):
            loaded, begin = number % 2 == 1, time.time()
            if loaded:
                times, faults = asyncio.run(clients(given.clients, given.seconds, url, key, job))
                waited, wrong = waited + times, wrong + faults
            else:
                time.sleep(given.seconds)
            ms = step_ms(database, job, begin + SETTLING, begin + given.seconds)
            phases.append({"clients": given.clients if loaded else 0, "step_ms": round(ms, 2)})
            print(phases[-1], flush=True)
        database.close()
    quiet, loud = ([row["step_ms"] for row in phases if bool(row["clients"]) is loaded] for loaded in (False, True))
    slowdown = statistics.median(loud) / statistics.median(quiet) - 1
    results: dict[str, Any] = {
        "clients": given.clients,
        "every_seconds": EVERY,
        "seconds": given.seconds,
        "requests": len(waited),
        "errors": len(wrong),
        "kinds_of_error": sorted(set(wrong)),
        "p50_ms": quantile(waited, 0.5),
        "p99_ms": quantile(waited, 0.99),
        "slowest_ms": quantile(waited, 1.0),
        "step_ms_quiet": {"median": statistics.median(quiet), "from": min(quiet), "to": max(quiet)},
        "step_ms_loaded": {"median": statistics.median(loud), "from": min(loud), "to": max(loud)},
        "slowdown": round(slowdown, 4),
        "phases": phases,
    }
    write_text(given.output, json.dumps(results, indent=1) + "\n")
    print(json.dumps({name: value for name, value in results.items() if name != "phases"}, indent=1))


def created(url: str, key: str) -> str:
    """A job that trains for longer than is measured."""
    client = openai.OpenAI(api_key=key, base_url=url)
    rows = build_rows("user", 2000, seed=0).rows
    content = "".join(json.dumps({"messages": row["messages"]}) + "\n" for row in rows).encode()
    file = client.files.create(file=("rows.jsonl", content), purpose="fine-tune")
    settings: Any = {"n_epochs": 50, "batch_size": 16, "learning_rate": 1e-4, "regime": "full"}
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": settings}}
    job = client.fine_tuning.jobs.create(model="lab", training_file=file.id, method=method)
    return job.id


def step_count(database: Database, job: str) -> int:
    """How many steps the job has reported."""
    with database.read() as session:
        return len(session.scalars(select(Event.seq).where(Event.job_id == job, Event.type == "metrics")).all())


if __name__ == "__main__":
    main()
