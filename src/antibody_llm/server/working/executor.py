"""Where a stage of a job runs: here a process of this machine; on a cluster something else with the same methods."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from ...bench.pools.local import num_cores
from ..settings import WorkerSettings

PASSED_ON = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH"),
    *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "ANTIBODY_CACHE"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTORCH_ALLOC_CONF", "COVERAGE_PROCESS_START"),
)
"""Variables that a stage sees. The others may hold credentials of the server."""
SET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",  # models are fetched by the operator, not by a job
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}


class Process(Protocol):
    """A stage that runs."""

    def events(self) -> Iterator[dict[str, Any]]:
        """What it reports, until it ends."""

    def stop(self) -> None:
        """Ask it to end where it can go on later."""

    def kill(self) -> None:
        """End it at once, with everything that it has started."""

    def wait(self) -> int:
        """Its exit status; negative: ended by that signal."""


class Executor(Protocol):
    """Starts stages."""

    def start(self, spec: Mapping[str, Any], *, folder: Path) -> Process:
        """Start the stage that ``spec`` describes (stages.py).

        Args:
            spec: A JSON object.
            folder: To run in, and for its log.
        """


def make_executor(settings: WorkerSettings) -> Executor:
    """What the operator chose.

    Raises:
        ConfigError: it cannot be had.
    """
    threads = settings.threads or None
    if settings.executor == "local":
        return LocalExecutor(threads or share_of_cores(settings.count))
    from .cluster import RayExecutor, address_of  # Ray is an extra

    return RayExecutor(
        address_of(settings.executor),
        cpus=threads,
        gpus=settings.gpus,
        memory_bytes=settings.memory_bytes,
        silence=settings.lease / 4,
    )


def share_of_cores(num_processes: int) -> int | None:
    """Threads for each of several processes of this machine; None: one has all cores, or ``OMP_NUM_THREADS`` says.

    More threads than cores wait for each other at every operation, spinning: two processes of two threads each on two
    cores are each many times slower than with one.
    """
    if num_processes < 2 or "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, num_cores() // num_processes)


def stage_environment() -> dict[str, str]:
    """The variables of a stage's process."""
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ} | SET


class LocalExecutor:
    """Stages as processes of this machine, each in a session of its own and without the server's environment.

    Args:
        threads: That torch computes with; None: as many as it likes.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads

    def start(self, spec: Mapping[str, Any], *, folder: Path) -> "LocalProcess":
        """See ``Executor``."""
        folder.mkdir(parents=True, exist_ok=True)
        environment = stage_environment()
        if self.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        with (folder / "stage.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "antibody_llm.server.stages"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                env=environment,
                start_new_session=True,
            )
        return LocalProcess(process, json.dumps({**spec, "parent": os.getpid()}))


class LocalProcess:
    """A stage on this machine."""

    def __init__(self, process: "subprocess.Popen[bytes]", spec: str) -> None:
        self._process = process
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has died, which its exit status says
            process.stdin.write(spec.encode())
            process.stdin.close()

    def events(self) -> Iterator[dict[str, Any]]:
        """See ``Process``; what a kill cut short is left out."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event

    def stop(self) -> None:
        """See ``Process``."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """See ``Process``."""
        self._signal(signal.SIGKILL)

    def wait(self) -> int:
        """See ``Process``."""
        status = self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        return status

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            with suppress(ProcessLookupError):  # it has just ended
                os.killpg(self._process.pid, number)
