"""Stages of jobs on a Ray cluster, which finds each a node with its processors and GPUs and restarts it elsewhere.

A stage is a ``Place`` on some node: an actor that has the stage's process beside it, the same as on this machine. The
worker asks it again and again for what the stage has reported. Two processes of one stage never run at once:

    - a process ends with its place, as it ends with a worker of this machine;
    - a place that nobody asks for ``silence`` seconds kills it, so that a node which is cut off, or whose worker has
      died, is quiet long before the job's lease runs out;
    - a place that Ray has restarted on another node waits twice as long before it begins.
"""

import logging
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from ...errors import ConfigError
from ..settings import WorkerSettings
from .executor import Executor, LocalExecutor, Process

log = logging.getLogger("antibody.server")

RESTARTS = 3
"""Times that Ray starts a lost place again before the worker has to, which begins the stage again a few times."""
ASKED_SECONDS = 1.0
"""Longest wait for an event before a place answers that there is none."""
PATIENCE = 30.0
"""Seconds without a place for a stage after which the operator's log says so."""
NODE = "ray-node"
"""File in a stage's folder with the node that it was last begun on."""
CONNECT_SECONDS = 5.0
CLIENT_PORT = "10001"
"""Where Ray Client listens, which is another protocol."""


def address_of(executor: str) -> str:
    """The address for ``ray.init``: ``auto``, or HOST:PORT of ``ray start``."""
    return executor.removeprefix("ray://")


class RayExecutor:
    """Stages on a cluster of which this machine is a node.

    Args:
        address: ``auto``, or HOST:PORT of the cluster's head.
        cpus: Processors of a stage, and threads that torch computes with; None: one, and as Ray says.
        gpus: GPUs of a stage; a fraction shares one.
        memory_bytes: Memory that Ray sets aside for a stage; 0: none.
        silence: Seconds after which a place that nobody asks ends its process.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """

    def __init__(
        self, address: str, *, cpus: int | None = None, gpus: float = 0, memory_bytes: int = 0, silence: float = 15.0
    ) -> None:
        self.cpus, self.silence = cpus, silence
        self._ray = connected(address)
        needs: dict[str, Any] = {"num_cpus": cpus or 1, "num_gpus": gpus}
        if memory_bytes:
            needs["memory"] = memory_bytes
        self.needs = ", ".join(f"{name}={value:g}" for name, value in needs.items())
        # A poll that a restart has interrupted is sent again; one is answered at a time.
        self._place = self._ray.remote(Place).options(max_restarts=RESTARTS, max_task_retries=-1, **needs)

    def start(self, spec: Mapping[str, Any], *, folder: Path) -> "RayProcess":
        """See ``Executor``."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NODE).unlink(missing_ok=True)
        return RayProcess(self, self._place.remote(dict(spec), str(folder), self.cpus, self.silence))

    def answer(self, reference: Any, seconds: float) -> Any:
        """A place's answer, or None where there is none yet.

        Raises:
            PlaceLost: the place is gone, and Ray does not start it again.
        """
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference, timeout=seconds)
        except errors.GetTimeoutError:
            return None
        except errors.RayError as error:
            raise PlaceLost(str(error)) from None

    def end(self, place: Any) -> None:
        """Have a place and its process end now, for good."""
        with suppress(Exception):  # it has ended
            self._ray.kill(place, no_restart=True)


class PlaceLost(Exception):
    """A place is gone for good."""


class RayProcess:
    """A stage on the cluster.

    Args:
        executor: The cluster.
        place: The handle of its ``Place``.
    """

    def __init__(self, executor: RayExecutor, place: Any) -> None:
        self._executor, self._place = executor, place
        self._status: int | None = None
        self._stopped, self._killed = threading.Event(), False
        self._life, self._seen = "", 0
        self._heard = time.monotonic()

    def events(self) -> Iterator[dict[str, Any]]:
        """See ``Process``; where Ray has restarted the stage, what it reports from there on."""
        try:
            while self._status is None:
                answer = self._answer()
                if answer is None:
                    yield {"event": "stopped", "step": None}  # it had no place, and nothing is lost
                    self._status = 0
                    return
                life, events, self._status = answer
                if life != self._life:
                    if self._life:
                        log.warning("Ray has lost a stage's process, and has begun the stage again")
                    self._life, self._seen = life, 0
                self._seen += len(events)
                yield from events
        except PlaceLost as lost:
            if not self._killed:
                log.warning("a place on the Ray cluster is lost: %s", lost)
            self._status = -9

    def _answer(self) -> tuple[str, list[dict[str, Any]], int | None] | None:
        """What the place says next; None where the stage is to stop and has no place to do so."""
        reference = self._place.poll.remote(self._life, self._seen, self._stopped.is_set())
        warned = False
        while True:
            found: tuple[str, list[dict[str, Any]], int | None] | None
            found = self._executor.answer(reference, ASKED_SECONDS)
            now = time.monotonic()
            if found is not None:
                self._heard = now
                return found
            if self._stopped.is_set() and (not self._life or now - self._heard > self._executor.silence):
                self._executor.end(self._place)
                return None
            if not warned and now - self._heard > max(PATIENCE, self._executor.silence):
                warned = True
                log.warning("a stage waits for a place on the Ray cluster (%s)", self._executor.needs)

    def stop(self) -> None:
        """See ``Process``; the place learns of it when it is asked next."""
        self._stopped.set()

    def kill(self) -> None:
        """See ``Process``."""
        self._killed = True
        self._executor.end(self._place)

    def wait(self) -> int:
        """See ``Process``."""
        for _ in self.events():
            pass
        self._executor.end(self._place)  # its processors are free for another
        return -9 if self._status is None else self._status


class Place:
    """A stage's process on a node of the cluster, and what it has reported. Ray makes it, and makes it again.

    Args:
        spec: The stage's.
        folder: The stage's, which every node sees.
        threads: That torch computes with.
        silence: Seconds after which nobody seems to ask any more.
        executor: Starts the process; by default on this node.
        node: The node's name; by default Ray's.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        folder: str,
        threads: int | None,
        silence: float,
        *,
        executor: Executor | None = None,
        node: str | None = None,
    ) -> None:
        self.life, self.silence = uuid4().hex, silence
        self._events: list[dict[str, Any]] = []
        self._status: int | None = None
        self._changed = threading.Condition()
        self._process: Process | None = None
        self._stopped = False
        if not Path(folder).is_dir():
            why = _UNSHARED.format(folder, socket.gethostname())
            self._events.append({"event": "failed", "kind": "OutputError", "message": why})
            self._status = 1
            return
        self._wait_for_the_former(Path(folder) / NODE, node or _node())
        self._asked = time.monotonic()
        self._process = (executor or LocalExecutor(threads)).start(spec, folder=Path(folder))
        for work in (self._read, self._watch):
            threading.Thread(target=work, daemon=True).start()

    def poll(self, life: str, seen: int, stop: bool) -> tuple[str, list[dict[str, Any]], int | None]:
        """What has been reported since.

        Args:
            life: The place that the caller has heard of last.
            seen: Events that it has had from that one.
            stop: Whether the stage is to end where it can go on later.

        Returns:
            This place's own name, further events, and the exit status once there is one.
        """
        seen = seen if life == self.life else 0
        self._asked = time.monotonic()
        if stop and not self._stopped and self._process is not None:
            self._stopped = True
            self._process.stop()
        with self._changed:
            self._changed.wait_for(lambda: len(self._events) > seen or self._status is not None, ASKED_SECONDS)
            self._asked = time.monotonic()
            return self.life, self._events[seen:], self._status

    def _wait_for_the_former(self, file: Path, node: str) -> None:
        """Wait until the stage's process on another node has ended, which may be cut off; on this one it has."""
        former = file.read_text(encoding="utf-8") if file.exists() else node
        if former != node:
            time.sleep(2 * self.silence)
        file.write_text(node, encoding="utf-8")

    def _read(self) -> None:
        assert self._process is not None
        for event in self._process.events():
            with self._changed:
                self._events.append(event)
                self._changed.notify_all()
        status = self._process.wait()
        with self._changed:
            self._status = status
            self._changed.notify_all()

    def _watch(self) -> None:
        while self._status is None:
            time.sleep(self.silence / 10)
            if time.monotonic() - self._asked > self.silence:
                assert self._process is not None
                self._process.kill()
                return


_UNSHARED = (
    "{} is not there on the Ray node {}. Set home to a folder that the worker and every node of the cluster share."
)


def connected(address: str) -> Any:
    """The module ``ray``, connected to a cluster.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "worker.executor: Ray is not installed. Install it: pip install 'antibody-llm[ray]'"
        ) from None
    if not ray.is_initialized():
        try:
            if address != "auto":  # Ray itself tries for ten minutes
                host, _, port = address.rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as error:
            hint = "This machine must be a node of the cluster (ray start)."
            if address.endswith(f":{CLIENT_PORT}"):
                hint = f"Port {CLIENT_PORT} is Ray Client's; name the port of ray start, which is 6379 by default."
            raise ConfigError(
                f"worker.executor: no Ray cluster answers at {address} ({_first(error)}). {hint}"
            ) from None
    return ray


def lacking(settings: WorkerSettings) -> list[str]:
    """What keeps every node of a cluster from taking a stage; looks, and disconnects again.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """
    ray = connected(address_of(settings.executor))
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()
    needs = {"CPU": float(settings.threads or 1), "GPU": settings.gpus, "memory": float(settings.memory_bytes)}
    if any(all(node.get(name, 0.0) >= need for name, need in needs.items()) for node in nodes):
        return []
    asked = ", ".join(f"{need:g} {name}" for name, need in needs.items() if need)
    return [
        f"worker: no node of the Ray cluster has what a job asks for ({asked}). Lower worker.gpus or worker.threads."
    ]


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())
