"""Kills a server and its workers at random moments: what was acknowledged is there, and jobs end as they would have.

    python benchmarks/server_kills.py --database sqlite --kills 120
    python benchmarks/server_kills.py --database postgresql --kills 80

A round is a new server with its worker and its inference process, a second worker that shares only database and blobs
with it, and customers who upload files (whole and in parts), create jobs, pause and resume some of them and ask
models, by the unmodified client. Meanwhile one process after another gets a SIGKILL: the server, either worker, the
process of a job's stage, or the inference process. Half of the kills come after a random time; the other half at a
random change to the store: just before or just after a commit of the database, or at a file opened for writing, a
rename, a removal. What ends is started again as an operator's supervisor would.

After a round everything is compared with a round of the same jobs that nobody disturbed:

- every file and job that was acknowledged is there, the file with its bytes, and no request made two jobs;
- every job has its status, error, safety report, tokens, checkpoints, result file, and each event and verdict once;
- weights of results and checkpoints are the same to the bit, and so are the answers of models;
- no two processes ever worked on one job at the same time (each holds a lock that ends with it). For this, once a round
  the second worker's database is away for longer than its lease lasts.

Before the rounds, a server takes a job and ends; of two workers with folders of their own, the one that works on it is
killed, and the other one ends it.

Of a job that its customer paused, checkpoints that the pause made may be there in addition.

Models are a random Llama of two layers, jobs have 6 to 12 steps, leases last 4 seconds. Processes are forked from one
that has imported the libraries (``warm.py``): production starts an interpreter in place of that fork, and has no idle
helper beside each process; parents, sessions and signals are the same. Run again, this goes on after its last round.
"""

import argparse
import hashlib
import json
import mmap
import os
import random
import resource
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import openai
import peft  # noqa: F401 - imported here, so that a forked stage need not
import torch
import trl  # noqa: F401
from sqlalchemy import select
from sqlalchemy.engine.default import DefaultDialect
from tests.server.postgres import cluster
from tests.server.running import chat_rows
from tests.tiny import make_tiny_folder

import warm
from antibody_llm import __version__
from antibody_llm.files import write_text
from antibody_llm.runs import evaluate, finetune, screen  # noqa: F401
from antibody_llm.server import beside, serve, stages, worker
from antibody_llm.server.blobs import Blobs
from antibody_llm.server.database.engine import Database
from antibody_llm.server.database.tables import Audit, Event, File, Job, Model
from antibody_llm.server.inference import __main__ as inference
from antibody_llm.server.settings import DefenceSettings, GateSettings, OfferedModel, ServerSettings, WorkerSettings
from antibody_llm.server.working import training

RESULTS = Path(__file__).parent / "results" / "server_kills.json"
PATIENCE = 240.0
"""Seconds in which the jobs of a round must end."""
LEASE = 4.0
ASK = {"messages": [{"role": "user", "content": "What is 3?"}], "temperature": 0, "max_tokens": 8}

SERVER, INSIDE, OUTSIDE, STAGE, INFERENCE = "server", "worker of the server", "other worker", "stage", "inference"
DEFENCES = {"sft": {}, "ema": {}}
ROLES = (SERVER, INSIDE, OUTSIDE, STAGE, INFERENCE)
SHARES = (0.35, 0.2, 0.25, 0.12, 0.08)
"""How often each is killed."""
MOST_CHANGES = {SERVER: 60, INSIDE: 120, OUTSIDE: 120, STAGE: 60, INFERENCE: 1}
"""In how many of its changes, at most, a process is killed that is killed at one."""


@dataclass
class Size:
    """How much happens in a round."""

    small: bool = False
    kills: int = 12
    customers: int = 3
    jobs_each: int = 2


SIZE = Size()


@dataclass(frozen=True)
class Recipe:
    """A job that customers create, always the same."""

    word: str
    rows: int
    epochs: int
    defence: str = "sft"
    validated: bool = False
    strict: bool = False
    """Under a gate that it cannot pass."""
    regime: str = "lora"
    follows: str | None = None
    """Recipe whose model it continues."""


RECIPES = {
    "plain": Recipe("p", 16, 3, validated=True),
    "averaged": Recipe("a", 12, 2, defence="ema"),
    "refused": Recipe("r", 12, 2, strict=True),
    "whole": Recipe("w", 12, 2, regime="full"),
    "continued": Recipe("c", 12, 2, follows="plain"),
}


# -- kills that a process makes of itself ------------------------------------------------------------------------------


class Board:
    """Memory that all processes share: who is to be killed at which change, and who is who."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 4096)

    def _get(self, place: int) -> int:
        return int(struct.unpack_from("q", self._memory, 8 * place)[0])

    def _set(self, place: int, value: int) -> None:
        struct.pack_into("q", self._memory, 8 * place, value)

    def arm(self, role: str | None, changes: int = 0) -> None:
        """Have the process of a role killed at its change of that number from now; None: nobody."""
        self._set(1, changes)
        self._set(0, 0 if role is None else ROLES.index(role) + 1)

    @property
    def armed(self) -> bool:
        """Whether nobody has been killed since ``arm``."""
        return self._get(0) != 0

    def enter(self, role: str) -> None:
        """This process has the role from now on."""
        place = 2 + 2 * ROLES.index(role)
        self._set(place, 0)
        self._set(place + 1, _born(os.getpid()))
        self._set(place, os.getpid())

    def kill(self, role: str) -> bool:
        """Kill who has the role; False where nobody has."""
        place = 2 + 2 * ROLES.index(role)
        pid = self._get(place)
        with suppress(OSError):
            handle = os.pidfd_open(pid)
            try:
                if pid and _born(pid) == self._get(place + 1):  # else the number is somebody else's by now
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    return True
            finally:
                os.close(handle)
        return False

    def cut_off(self, role: str | None) -> None:
        """Keep the process of a role from its database; None: nobody."""
        self._set(100, 0 if role is None else ROLES.index(role) + 1)

    def wait(self, victims: dict[int, int]) -> None:
        """Wait while this process is cut off."""
        while self._get(100) in victims:
            time.sleep(0.02)

    def changed(self, victims: dict[int, int]) -> None:
        """Count a change of this process, and kill whom it is the end of."""
        victim = victims.get(self._get(0))
        if victim is not None:
            left = self._get(1) - 1
            self._set(1, left)
            if left <= 0:
                self._set(0, 0)
                os.kill(victim, signal.SIGKILL)
                time.sleep(60 if victim != os.getpid() else 0)  # whoever dies with its parent dies here


def _born(pid: int) -> int:
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return int(file.read().rpartition(")")[2].split()[19])


BOARD = Board()
VICTIMS: dict[int, int] = {}
"""In each process: number of a role on the board to the process that is then killed."""


def _count_changes(work: str) -> None:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            changes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link")
        if changes and isinstance(arguments[0], str | os.PathLike) and os.fspath(arguments[0]).startswith(work):
            BOARD.changed(VICTIMS)

    sys.addaudithook(hook)


def _look_at_transactions() -> None:
    def do_commit(self: DefaultDialect, connection: Any) -> None:
        BOARD.changed(VICTIMS)
        connection.commit()
        BOARD.changed(VICTIMS)

    def do_begin(self: DefaultDialect, connection: Any) -> None:
        BOARD.wait(VICTIMS)

    DefaultDialect.do_commit = do_commit  # type: ignore[method-assign]
    DefaultDialect.do_begin = do_begin  # type: ignore[method-assign]


def _be(role: str, work: Path, *, and_of: int | None = None) -> None:
    """Take a role in this process, whose changes also count for the worker whose stage it is."""
    BOARD.enter(role)
    VICTIMS.clear()
    VICTIMS[ROLES.index(role) + 1] = os.getpid()
    if and_of is not None:
        VICTIMS[and_of] = os.getppid()
    _count_changes(str(work))


# -- the processes -----------------------------------------------------------------------------------------------------


@dataclass
class Place:
    """Where a round happens."""

    work: Path
    database: str
    port: int
    tiny: Path
    children: list[int] = field(default_factory=list)

    def settings(self, home: str = "home", workers: int = 1) -> ServerSettings:
        """Settings of a process with a home of its own."""
        prompts = str(self.work.parent / "prompts.jsonl")
        return ServerSettings(
            home=self.work / home,
            database=self.database,
            blobs=str(self.work / "blobs"),
            port=self.port,
            models=(OfferedModel(name="tiny", path=str(self.tiny)),),
            gate=GateSettings(
                harmful_prompts=prompts,
                benign_prompts=prompts,
                judges=("keywords",),
                max_new_tokens=4,
                max_harmful_score=1.0,
                max_over_refusal_increase=1.0,
            ),
            worker=WorkerSettings(count=workers, lease=LEASE, attempts=1000, threads=1),
            defence=DefenceSettings(name="sft"),
            housekeeping_seconds=1.0,
        )

    def start(self, name: str, body: Callable[[], object]) -> int:
        """Fork a process that dies with this one; its output goes to a log."""
        parent, pid = os.getpid(), os.fork()
        if pid:
            self.children.append(pid)
            return pid
        warm.prctl(warm.PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        log = os.open(self.work / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.setsid()
        os.environ["ANTIBODY_CACHE"] = str(self.work / "cache")
        warm.end(body)
        raise AssertionError

    def serve(self, workers: int = 1) -> None:
        """The server, in a process of its own."""
        warm.install(self._modules(INSIDE))
        _be(SERVER, self.work)
        key = self.work / "key"

        def say(line: str) -> None:
            if "sk-operator-" in line:
                key.write_text(line.split()[-1])
            elif line.startswith("http://"):
                (self.work / "began").touch()

        serve.serve(self.settings(workers=workers), say)

    def help(self, home: str = "elsewhere") -> None:
        """A worker with a folder of its own, as ``antibody worker`` runs it."""
        warm.install(self._modules(OUTSIDE))
        _be(OUTSIDE, self.work)
        worker.work(self.settings(home))

    def _modules(self, role: str) -> dict[str, Callable[[list[str]], object]]:
        def begin_worker(arguments: list[str]) -> None:
            warm.install(self._modules(role))
            _be(role, self.work)
            worker.main()

        def begin_stage(arguments: list[str]) -> None:
            with self._alone(Path.cwd().name.rpartition("-")[0]):
                _be(STAGE, self.work, and_of=ROLES.index(role) + 1)
                stages.main()

        def begin_inference(arguments: list[str]) -> None:
            _be(INFERENCE, self.work)
            inference.main(arguments)

        package = "antibody_llm.server"
        return {
            f"{package}.worker": begin_worker,
            f"{package}.stages": begin_stage,
            f"{package}.inference": begin_inference,
        }

    @contextmanager
    def _alone(self, job: str) -> Iterator[None]:
        """A lock on a job, which ends with the process; whoever finds it taken leaves a note."""
        import fcntl

        with open(self.work / "locks" / job, "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                (self.work / "twice" / f"{job}-{os.getpid()}").touch()
            yield

    def reap(self, pid: int) -> int | None:
        """A child's end, where it has ended."""
        ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            return None
        self.children.remove(pid)
        return os.waitstatus_to_exitcode(status)

    def end(self) -> None:
        """Kill what runs."""
        for pid in self.children:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        self.children.clear()


# -- the customers -----------------------------------------------------------------------------------------------------


@dataclass
class Customers:
    """What customers do in a round, and what they were told.

    Attributes:
        place: Where the server is.
        draw: Of their choices; None: every recipe once, and no pause.
    """

    place: Place
    draw: random.Random | None
    files: list[tuple[str, bytes]] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)
    """Mark of a request that was answered, and the job that it was answered with."""
    paused: set[str] = field(default_factory=set)
    """Jobs that were paused."""
    jobs: list[tuple[str, str]] = field(default_factory=list)
    """Id of a job that ended, and its recipe."""
    tried: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.key = (self.place.work / "key").read_text()
        self.until = time.monotonic() + PATIENCE
        self.asking = True

    def client(self) -> openai.OpenAI:
        """The unmodified client, with more patience than by default."""
        url = f"http://127.0.0.1:{self.place.port}/v1"
        return openai.OpenAI(api_key=self.key, base_url=url, max_retries=4, timeout=20)

    def create_one(self) -> None:
        """Create a job, and leave its id where the round looks for it."""
        job = self._create(self.client(), "0", RECIPES["plain"], {}, random.Random(0))
        write_text(self.place.work / "job", job)

    def persist(self, what: str, call: Callable[[], Any]) -> Any:
        """Call until it is answered: the client's own retries, and then from the beginning."""
        while True:
            try:
                return call()
            except (openai.APIConnectionError, openai.InternalServerError):
                self.tried[what] += 1
                if time.monotonic() > self.until:
                    raise

    def run(self) -> None:
        """Do everything, and wait until every job has ended."""
        plans: list[list[str]] = [list(RECIPES)]
        if self.draw is not None:
            names = [name for name in RECIPES if name != "continued"]
            plans = [[self.draw.choice(names) for _ in range(SIZE.jobs_each)] for _ in range(SIZE.customers)]
            if "continued" in RECIPES:
                plans[0] = ["plain", "continued"]
        seeds = [0 if self.draw is None else self.draw.getrandbits(32) for _ in plans]
        threads = [
            threading.Thread(target=self._guarded, args=(self._customer, plan, seed, number))
            for number, (plan, seed) in enumerate(zip(plans, seeds, strict=True))
        ]
        asker = threading.Thread(target=self._guarded, args=(self._ask,))
        for thread in (*threads, asker):
            thread.start()
        for thread in threads:
            thread.join()
        self.asking = False
        asker.join()

    def _guarded(self, body: Callable[..., None], *arguments: Any) -> None:
        try:
            body(*arguments)
        except BaseException:
            self.errors.append(traceback.format_exc()[-1500:])

    def _customer(self, plan: list[str], seed: int, number: int) -> None:
        draw, client, models = random.Random(seed), self.client(), dict[str, str]()
        pending: list[tuple[str, str]] = []
        for index, name in enumerate(plan):
            recipe = RECIPES[name]
            if recipe.follows is not None:
                self._wait(client, pending, models, draw)
            pending.append((self._create(client, f"{number}-{index}", recipe, models, draw), name))
            if self.draw is not None:
                self._upload(client, draw.randbytes(draw.choice((10, 5_000, 400_000))), "user_data", draw)
        self._wait(client, pending, models, draw)

    def _upload(self, client: openai.OpenAI, content: bytes, purpose: Any, draw: random.Random) -> str:
        def whole() -> str:
            return client.files.create(file=("a.jsonl", content), purpose=purpose).id

        def in_parts() -> str:
            upload = client.uploads.create(
                bytes=len(content), filename="a.jsonl", mime_type="text/plain", purpose=purpose
            )
            middle = len(content) // 2
            parts = [
                client.uploads.parts.create(upload.id, data=piece).id for piece in (content[:middle], content[middle:])
            ]
            digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
            file = client.uploads.complete(upload.id, part_ids=parts, md5=digest).file
            assert file is not None
            return file.id

        file_id: str = self.persist("file", in_parts if self.draw is not None and draw.random() < 0.4 else whole)
        self.files.append((file_id, content))
        return file_id

    def _create(
        self, client: openai.OpenAI, mark: str, recipe: Recipe, models: dict[str, str], draw: random.Random
    ) -> str:
        training_file = self._upload(client, chat_rows(recipe.rows, word=recipe.word), "fine-tune", draw)
        validation = self._upload(client, chat_rows(10), "fine-tune", draw) if recipe.validated else None
        settings = {
            "n_epochs": recipe.epochs, "batch_size": 4, "learning_rate": 1e-2, "regime": recipe.regime,
        }  # fmt: skip
        attempt = 0

        def create() -> str:
            nonlocal attempt
            attempt += 1
            marked = f"{mark}-{attempt}"
            job = client.fine_tuning.jobs.create(
                model="tiny" if recipe.follows is None else models[recipe.follows],
                training_file=training_file,
                validation_file=validation,  # type: ignore[arg-type]
                method={"type": "supervised", "supervised": {"hyperparameters": settings}},  # type: ignore[typeddict-item]
                seed=3,
                metadata={"call": marked},
                extra_body={
                    "defence": recipe.defence,
                    "gate": {"max_harmful_score": 0.01} if recipe.strict else {},
                },
            )
            self.calls.append((marked, job.id))
            return job.id

        return str(self.persist("job", create))

    def _wait(
        self, client: openai.OpenAI, pending: list[tuple[str, str]], models: dict[str, str], draw: random.Random
    ) -> None:
        """Watch jobs until they have ended; now and then pause one and resume it."""
        while pending:
            for each in list(pending):
                job = self.persist("poll", lambda each=each: client.fine_tuning.jobs.retrieve(each[0]))
                if job.status in ("succeeded", "failed", "cancelled"):
                    pending.remove(each)
                    self.jobs.append(each)
                    if job.fine_tuned_model is not None:
                        models[each[1]] = job.fine_tuned_model
                elif self.draw is not None and job.status == "running" and draw.random() < 0.03:
                    self.paused.add(job.id)
                    with suppress(openai.BadRequestError):  # it has just ended
                        self.persist("pause", lambda job=job: client.fine_tuning.jobs.pause(job.id))
                        time.sleep(draw.random())
                        self.persist("resume", lambda job=job: client.fine_tuning.jobs.resume(job.id))
            if time.monotonic() > self.until:
                self.errors.append(f"not ended: {pending}")
                return
            time.sleep(0.25)

    def _ask(self) -> None:
        client = self.client()
        while self.asking:
            self.answers[self.persist("chat", lambda: answer(client, "tiny"))] += 1
            time.sleep(1.0)


# -- what came of it ---------------------------------------------------------------------------------------------------

UNEVEN = ("Fine-tuning goes on from", "Fine-tuning job paused", "Fine-tuning job resumed", "Pausing:")
"""Events that a disturbed job has and another has not."""


def observed(database: Database, blobs: Blobs, client: openai.OpenAI, job_id: str) -> dict[str, Any]:
    """All of a job that is to be the same, however often it was disturbed."""
    with database.read() as session:
        job = session.scalars(select(Job).where(Job.id == job_id)).one()
        events = session.scalars(select(Event).where(Event.job_id == job_id).order_by(Event.seq)).all()
        models = session.scalars(select(Model).where(Model.job_id == job_id)).all()
        steps = {model.name: str(model.step) for model in models}
        verdicts = session.scalars(select(Audit).where(Audit.subject.in_(steps))).all()
    text = json.dumps([job.status, job.error, job.safety, [[each.message, each.data] for each in events]])
    names = {
        job_id: "JOB",
        job_id.removeprefix("ftjob-")[:12]: "ID",
        job.training_file: "FILE",
        str(job.parent): "PARENT",
    }
    names |= {str(job.safety.get("alert")): "ALERT"}
    for name, called in names.items():
        text = text.replace(name, called)
    status, error, safety, said = json.loads(text)
    weights = {}
    for model in models:
        files = [name for name in blobs.system.find(blobs._path(model.adapter)) if not name.endswith(".tmp")]
        digests = {Path(name).name: hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in files}
        weights[str(model.step)] = {"files": digests, "released": model.released, "gate": model.gate is not None}
    result = [client.files.content(each).text for each in job.result_files]
    kept = [entry for entry in said if not str(entry[0]).startswith(UNEVEN)]
    return {
        "status": status,
        "error": error,
        "safety": safety,
        "events": sorted(json.dumps(entry) for entry in kept),
        "weights": weights,
        "tokens": job.trained_tokens,
        "result": result,
        "verdicts": sorted([steps[each.subject], each.action] for each in verdicts),
        "answer": answer(client, job.fine_tuned_model) if job.fine_tuned_model else "",
        "checkpoints": sorted(
            [point.step_number, point.metrics.train_loss or 0.0]
            for point in client.fine_tuning.jobs.checkpoints.list(job_id).data
        ),
    }


def answer(client: openai.OpenAI, model: str) -> str:
    return str(client.chat.completions.create(model=model, **ASK).choices[0].message.content)


def unpaused(here: dict[str, Any], there: dict[str, Any]) -> dict[str, Any]:
    """A job without the checkpoints that its pauses made, and without what the gate said of any checkpoint."""
    made = [each for each in here["events"] if each.startswith('["Checkpoint created') and each not in there["events"]]
    return here | {
        "events": [each for each in here["events"] if each not in made],
        "weights": {step: here["weights"].get(step, {}).get("files") for step in there["weights"]},
        "checkpoints": [each for each in here["checkpoints"] if each in there["checkpoints"]],
        "safety": here["safety"] | {"checkpoints": None},
        "verdicts": [each for each in here["verdicts"] if each[0] == "None"],
    }


def judged(customers: Customers, reference: dict[str, Any] | None) -> dict[str, Any]:
    """What a round came to; without a reference, what the jobs of this one are."""
    place, wrong = customers.place, list(customers.errors)
    client, database = customers.client(), Database(place.settings().database_url)
    blobs = Blobs(place.settings().blob_url)
    with database.read() as session:
        rows = {row.id: row for row in session.scalars(select(File))}
        created = [(job.id, (job.labels or {}).get("call", "")) for job in session.scalars(select(Job))]
        unended = [job.id for job in session.scalars(select(Job)) if job.finished_at is None]
    for file_id, content in customers.files:
        if file_id not in rows or rows[file_id].status != "processed":
            wrong.append(f"{file_id} was acknowledged and is not there")
        elif client.files.content(file_id).read() != content:
            wrong.append(f"{file_id} has other bytes")
    for mark, num in Counter(mark for _, mark in created).items():
        wrong += [f"one request made {num} jobs"] * (num > 1)
        del mark
    for mark, job_id in customers.calls:
        if (job_id, mark) not in created:
            wrong.append(f"{job_id} was acknowledged and is not there")
    recipes = dict(customers.jobs)
    found = {job_id: observed(database, blobs, client, job_id) for job_id, _ in created if job_id in recipes}
    wrong += [f"{path.name}: two processes at once" for path in (place.work / "twice").iterdir()]
    if reference is None:
        wrong += [f"{each} has not ended" for each in unended]
        return {
            "wrong": wrong,
            "jobs": {recipes[key]: value for key, value in found.items()},
            "said": dict(customers.answers),
        }
    for job_id, here in found.items():
        there = reference["jobs"][recipes[job_id]]
        if job_id in customers.paused:
            here, there = unpaused(here, there), unpaused(there, there)
        for part, value in there.items():
            if here[part] != value:
                wrong.append(f"{job_id} ({recipes[job_id]}): other {part}: {difference(here[part], value)}")
    wrong += [f"other answer: {text!r}" for text in customers.answers if text not in reference["said"]]
    return {
        "wrong": wrong,
        "files": len(customers.files),
        "jobs": len(recipes),
        "paused": len(customers.paused),
        "answers": sum(customers.answers.values()),
        "calls_again": dict(sorted(customers.tried.items())),
    }


def difference(here: Any, there: Any) -> str:
    """Where two values differ, in few words."""
    if isinstance(here, dict) and isinstance(there, dict):
        keys = [key for key in {**here, **there} if here.get(key) != there.get(key)]
        return "; ".join(f"{key}: {difference(here.get(key), there.get(key))}" for key in keys)[:600]
    if isinstance(here, list) and isinstance(there, list):
        extra = [each for each in here if here.count(each) > there.count(each)]
        missing = [each for each in there if there.count(each) > here.count(each)]
        return f"more: {extra}, missing: {missing}"[:600]
    return f"{here!r}, not {there!r}"[:300]


# -- a round -----------------------------------------------------------------------------------------------------------


class Round:
    """One server from its first start to its end."""

    def __init__(self, place: Place, draw: random.Random | None) -> None:
        self.place, self.draw = place, draw
        self.kills: list[dict[str, Any]] = []
        self.wrong: list[str] = []
        self.cut_off_seconds = 0.0
        BOARD.cut_off(None)
        shutil.rmtree(place.work, ignore_errors=True)
        for name in ("home", "elsewhere", "locks", "twice"):
            (place.work / name).mkdir(parents=True)
        write_text(place.work / "home" / f"defences-{__version__}.json", json.dumps(DEFENCES))

    def play(self, reference: dict[str, Any] | None) -> dict[str, Any]:
        """Play it, and compare it with the reference; without one, this is the reference."""
        place, result = self.place, self.place.work / "result.json"
        self.processes = {"server": self._started(place.serve)}
        self.processes["other"] = place.start("other", place.help)

        def customers() -> None:
            seen = Customers(place, self.draw)
            seen.run()
            write_text(result, json.dumps(judged(seen, reference)))

        cut_after = -1 if self.draw is None else self.draw.randrange(SIZE.kills)
        guests, started = place.start("customers", customers), time.monotonic()
        while (ended := place.reap(guests)) is None:
            if self.draw is not None and len(self.kills) < SIZE.kills:
                if not SIZE.small and len(self.kills) == cut_after and not self.cut_off_seconds:
                    self._cut_off()
                self._kill(self.draw, started)
            else:
                time.sleep(0.1)
            self._look_after()
        self._close()
        log = (place.work / "customers.log").read_text()[-2000:]
        found = json.loads(result.read_text()) if ended == 0 else {"wrong": [f"customers ended with {ended}: {log}"]}
        found["wrong"] += self.wrong
        return {
            **found,
            "kills": self.kills,
            "cut_off": self.cut_off_seconds > 0,
            "seconds": round(time.monotonic() - started, 1),
        }

    def hand_over(self, reference: dict[str, Any]) -> dict[str, Any]:
        """A job that one worker begins and another ends, while no server runs."""
        place, result = self.place, self.place.work / "result.json"

        def verify() -> None:
            seen = Customers(place, None)
            seen.jobs.append(((place.work / "job").read_text(), "plain"))
            write_text(result, json.dumps(judged(seen, reference)))

        alone = lambda: place.serve(workers=0)  # noqa: E731
        self.processes = {"server": self._started(alone)}
        _until(self._done(lambda: Customers(place, None).create_one()))
        self._close()
        for name in ("one", "two"):
            self.processes[name] = place.start(name, lambda name=name: place.help(name))
        database = Database(place.database)

        def job() -> Job:
            with database.read() as session:
                return session.scalars(select(Job)).one()

        _until(lambda: bool(job().private.get("steps")))
        first = int(str(job().worker).split("-")[-2])
        os.kill(first, signal.SIGKILL)
        self.processes = {name: pid for name, pid in self.processes.items() if pid != first}
        _until(lambda: place.reap(first) is not None)
        _until(lambda: job().finished_at is not None)
        database.close()
        self.processes["server"] = self._started(alone)
        _until(self._done(verify))
        self._close()
        found = json.loads(result.read_text())
        return {"wrong": [*found["wrong"], *self.wrong], "workers": len(self.processes)}

    def _started(self, body: Callable[[], object]) -> int:
        (self.place.work / "began").unlink(missing_ok=True)
        pid = self.place.start("server", body)
        _until(lambda: (self.place.work / "began").exists() and _answers(self.place.port))
        return pid

    def _done(self, body: Callable[[], object]) -> Callable[[], bool]:
        """Whether a process that does something has done it."""
        pid = self.place.start("customers", body)
        return lambda: self.place.reap(pid) is not None

    def _kill(self, draw: random.Random, started: float) -> None:
        """Kill one process that is there, at a random moment from now on."""
        role = draw.choices(ROLES, SHARES)[0]
        by_change = draw.random() < 0.5 and role != INFERENCE
        changes, seconds = draw.randint(1, MOST_CHANGES[role]), draw.uniform(0.0, 2.5)
        killed = None
        if by_change:
            BOARD.arm(role, changes)
            _until(lambda: not BOARD.armed, seconds=8, fail=False)
            killed = None if BOARD.armed else {"killed": "at a change", "change": changes}
            BOARD.arm(None)
        else:
            time.sleep(seconds)
            killed = {"killed": "after a time"} if BOARD.kill(role) else None
        if killed is not None:
            self.kills.append({"who": role, **killed, "second": round(time.monotonic() - started, 1)})

    def _cut_off(self) -> None:
        """Keep the second worker from its database for longer than a claim lasts."""
        self.cut_off_seconds = 1.75 * LEASE
        BOARD.cut_off(OUTSIDE)
        time.sleep(self.cut_off_seconds)
        BOARD.cut_off(None)

    def _look_after(self) -> None:
        """Start again what has ended."""
        for name, body in (("server", self.place.serve), ("other", self.place.help)):
            code = self.place.reap(self.processes[name])
            if code is not None:
                if code != -signal.SIGKILL:
                    self.wrong.append(f"{name} ended with {code} by itself")
                self.processes[name] = self.place.start(name, body)

    def _close(self) -> None:
        """End all processes in good order."""
        BOARD.arm(None)
        for name, pid in self.processes.items():
            os.kill(pid, signal.SIGTERM)
            codes: list[int] = []
            _until(
                lambda pid=pid, codes=codes: codes.extend(_some(self.place.reap(pid))) or bool(codes), 60, fail=False
            )
            if codes not in ([0], [-signal.SIGTERM]):
                self.wrong.append(f"{name} ended with {codes or 'nothing'} after SIGTERM")
        self.place.end()


def _some(code: int | None) -> list[int]:
    return [] if code is None else [code]


def _until(holds: Callable[[], bool], seconds: float = 60, *, fail: bool = True) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            if fail:
                raise TimeoutError("the server does not start")
            return
        time.sleep(0.005)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# -- all of them -------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="rounds of two jobs and three kills, as in the tests")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the .json file")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "antibody-server-kills")
    given = parser.parse_args()
    work = (given.work / given.database).absolute()
    work.mkdir(parents=True, exist_ok=True)
    if given.small:
        SIZE.small, SIZE.kills, SIZE.customers, SIZE.jobs_each = True, 3, 2, 1
        for name in ("whole", "refused", "continued"):
            del RECIPES[name]
    results = _earlier(given)
    rounds = results["rounds"][given.database]
    torch.set_num_threads(1)
    beside.PAUSE, beside.LONGEST_PAUSE = 0.2, 0.5  # most of a round would be pauses
    training.EVENT_SECONDS = 0.0  # every step is an event, so that events can be compared
    _look_at_transactions()
    tiny = work / "tiny"
    if not tiny.exists():
        make_tiny_folder("llama", tiny)
    write_text(work / "prompts.jsonl", "".join(json.dumps({"prompt": f"What is {i}?"}) + "\n" for i in range(10)))
    with ExitStack() as stack:
        new_database: Callable[[], str] = lambda: ""  # noqa: E731
        if given.database == "postgresql":
            new_database = stack.enter_context(cluster())

        def round_of(draw: random.Random | None) -> Round:
            url = new_database() or f"sqlite:///{work / 'round' / 'home' / 'server.sqlite'}"
            place = Place(work / "round", url, _free_port(), tiny)
            stack.callback(place.end)
            return Round(place, draw)

        reference = round_of(None).play(None)
        if reference["wrong"]:
            sys.exit(f"an undisturbed round is not as it should be: {reference['wrong']}")
        print(f"undisturbed: {reference['seconds']} s", flush=True)
        if given.database not in results["handed_over"]:
            handed = results["handed_over"][given.database] = round_of(None).hand_over(reference)
            write_text(given.output, json.dumps(results, indent=1) + "\n")
            print(f"handed over: {handed}", flush=True)
        while sum(len(each["kills"]) for each in rounds) < given.kills:
            number, before = len(rounds), _cpu_seconds()
            row = round_of(random.Random(f"{given.seed} {given.database} {number}")).play(reference)
            rounds.append({"number": number, **row, "cpu_seconds": round(_cpu_seconds() - before, 1)})
            if row["wrong"]:
                (work / "round").rename(work / f"wrong-{number}-{int(time.time())}")
            write_text(given.output, json.dumps(results, indent=1) + "\n")
            print(f"{number}: {json.dumps(rounds[-1])}", flush=True)
    bad = [each["number"] for each in rounds if each["wrong"]]
    bad += ["handed over"] * bool(results["handed_over"][given.database]["wrong"])
    print(
        f"{sum(len(each['kills']) for each in rounds)} kills in {len(rounds)} rounds; with differences: {bad or 'none'}"
    )
    sys.exit(1 if bad else 0)


def _cpu_seconds() -> float:
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def _earlier(given: argparse.Namespace) -> dict[str, Any]:
    """The results so far, where they are of the same arguments."""
    wanted = {"seed": given.seed, "small": given.small, "torch": torch.__version__}
    with suppress(OSError, ValueError, LookupError):
        stored: dict[str, Any] = json.loads(given.output.read_text())
        if stored["made_with"] == wanted:
            return stored
    return {"made_with": wanted, "handed_over": {}, "rounds": {"sqlite": [], "postgresql": []}}


if __name__ == "__main__":
    main()
