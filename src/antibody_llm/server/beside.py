"""Processes beside the API's: workers, and the one that answers for models. The API's own never imports torch.

A process that ends is started again, after a pause that doubles while it keeps ending at once. All of them end with
the server, however that ends.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx2
from fastapi import APIRouter

from .context import Context
from .inference.backends import LocalProcess
from .parent import PARENT
from .routes.inference import Inference, make_router
from .working.executor import share_of_cores

log = logging.getLogger("antibody.server")

LONGEST_SOCKET = 100
"""Bytes of a Unix socket's path that every system takes."""
PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a process is started again."""
STEADY = 30.0
"""Seconds after which a process has proven that it can run."""
GRACE = 60.0
"""Seconds that processes have to end: a worker makes a checkpoint first."""


@contextmanager
def processes(context: Context) -> Iterator[Sequence[APIRouter]]:
    """Start them, and end them with the block.

    Yields:
        Routes below ``/v1`` that pass requests on to them.
    """
    settings = context.settings
    with tempfile.TemporaryDirectory(prefix="antibody-") as short:
        run = settings.home / "run"
        run.mkdir(parents=True, exist_ok=True, mode=0o700)
        socket = run.absolute() / "inference.sock"
        if len(os.fsencode(socket)) > LONGEST_SOCKET:
            socket = Path(short) / "inference.sock"
        keys = frozenset(model.inference_key_env for model in settings.models)
        answers = [sys.executable, "-m", "antibody_llm.server.inference", str(socket)]
        kept = [Kept("inference", answers, withheld=keys, threads=share_of_cores(settings.worker.count + 1))]
        given = json.dumps(asdict(settings), default=str)
        for number in range(settings.worker.count):
            kept.append(Kept(f"worker {number + 1}", [sys.executable, "-m", "antibody_llm.server.worker"], given, keys))
        inference = Inference(
            LocalProcess(httpx2.AsyncHTTPTransport(uds=str(socket))), settings.home.absolute() / "weights"
        )
        with Supervisor(kept):
            yield (make_router(inference),)


@dataclass
class Kept:
    """A process that is to run."""

    name: str
    command: list[str]
    given: str = ""
    """What it reads on standard input."""
    withheld: frozenset[str] = frozenset()
    """Variables of this process that it does not see."""
    threads: int | None = None
    """Threads that it computes with; None: as many as it likes."""
    process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)
    started: float = field(default=0.0, init=False)
    pause: float = field(default=PAUSE, init=False)
    due: float = field(default=0.0, init=False)

    def start(self) -> None:
        """Start it, now."""
        passed_on = {name: value for name, value in os.environ.items() if name not in self.withheld}
        environment = passed_on | {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
        if self.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        environment[PARENT] = str(os.getpid())  # which may be killed while they still import their libraries
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(self.given.encode())
            self.process.stdin.close()


class Supervisor:
    """Keeps processes running; ``with`` does it for a block, and ends them after it."""

    def __init__(self, kept: Sequence[Kept], *, grace: float = GRACE, every: float = 0.5) -> None:
        self.kept, self.grace, self.every = kept, grace, every
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="supervisor", daemon=True)

    def __enter__(self) -> "Supervisor":
        for each in self.kept:
            each.start()
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ending.set()
        self._thread.join()
        for each in self.kept:
            _signal(each, signal.SIGTERM)
        deadline = time.monotonic() + self.grace
        for each in self.kept:
            if each.process is None:
                continue
            try:
                each.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("%s did not end in %.0f s and is killed", each.name, self.grace)
                _signal(each, signal.SIGKILL)
                each.process.wait()

    def _keep(self) -> None:
        while not self._ending.wait(self.every):
            for each in self.kept:
                self._look_after(each)

    def _look_after(self, each: Kept) -> None:
        now = time.monotonic()
        if each.process is None:
            if now >= each.due:
                each.start()
            return
        status = each.process.poll()
        if status is None:
            return
        each.pause = PAUSE if now - each.started > STEADY else min(2 * each.pause, LONGEST_PAUSE)
        log.error("%s ended with status %s and is started again in %.1f s", each.name, status, each.pause)
        each.process, each.due = None, now + each.pause


def _signal(each: Kept, number: int) -> None:
    if each.process is not None and each.process.poll() is None:
        with suppress(ProcessLookupError):
            os.kill(each.process.pid, number)
