"""A Ray cluster as a pool: each job a task with its CPUs and GPUs, done again by Ray where a process or a node is lost.

Every node sees the matrix's folder under the same path, since alignments are read from there. What a job returns comes
back to the driver too. An error of a job is its outcome, not Ray's to repeat: the same configuration fails again.
"""

import logging
import os
from collections.abc import Callable
from importlib import import_module
from typing import Any, Generic

from ...errors import ConfigError
from ...text import quoted
from .local import ProcessKilled, attempted
from .pool import Ended, J, Pool

RETRIES = 3
"""How often Ray does a job again whose process or node is lost."""
IN_FLIGHT = 8
"""Jobs that Ray is given at once, for each that it can run: enough that none of its processes waits for the driver, and
so few that waiting for any of them is cheap."""
LEAST = 64
PASSED_ON = ("PYTHONPATH", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "HF_HOME", "ANTIBODY_CACHE")
"""Variables of the driver's environment that its workers get."""


def on_ray(address: str, *, threads: int, gpus: float) -> Callable[[Callable[[J], Any]], Pool[J]]:
    """What makes a pool on a cluster.

    Args:
        address: ``auto`` for the cluster of this machine, else its address.
        threads: CPUs of each job.
        gpus: GPUs of each job.

    Raises:
        ConfigError: Ray is not installed.
    """
    try:
        import_module("ray")
    except ImportError:
        raise ConfigError("Ray is not installed. Install antibody-llm[ray], or run with jobs of one machine.") from None
    return lambda work: RayPool(work, address=address, threads=threads, gpus=gpus)


class RayPool(Generic[J]):
    """Tasks on a cluster.

    Args:
        work: Called for each job; a function that a module has by name, or a ``partial`` of one.
        address: ``auto``, or the cluster's address.
        threads: CPUs of each job.
        gpus: GPUs of each job.

    Raises:
        ConfigError: there is no cluster at the address, or none of its nodes has what a job needs.
    """

    def __init__(self, work: Callable[[J], Any], *, address: str, threads: int = 1, gpus: float = 0.0) -> None:
        self._ray: Any = import_module("ray")
        variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        variables |= {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        try:
            self._ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": variables},
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"there is no Ray cluster at {quoted(address)} ({str(error).splitlines()[0][:150]}). Start one with "
                "`ray start --head`, or give its address; one with token authentication needs RAY_AUTH_MODE=token.",
                field="ray",
            ) from error
        self._check_resources(threads, gpus)
        self.capacity = max(LEAST, IN_FLIGHT * int(self._ray.cluster_resources().get("CPU", 1)))
        self._work = self._ray.put(work)
        self._task = self._ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=RETRIES)(_task)
        self._running: dict[Any, J] = {}

    def submit(self, job: J) -> None:
        """Give it to Ray."""
        self._running[self._task.remote(self._work, job)] = job

    def wait(self) -> list[Ended[J]]:
        """Wait for any task; then take all that have ended."""
        refs = list(self._running)
        first, _ = self._ray.wait(refs, num_returns=1)
        done, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        return [self._ended(ref) for ref in dict.fromkeys([*first, *done])]

    def close(self) -> None:
        """Cancel what runs, and leave the cluster."""
        for ref in self._running:
            self._ray.cancel(ref, force=True)
        self._ray.shutdown()

    def _ended(self, ref: Any) -> Ended[J]:
        job = self._running.pop(ref)
        try:
            outcome, error = self._ray.get(ref)
        except self._ray.exceptions.RayError as lost:
            why = str(lost).strip().splitlines()[0][:200]
            return Ended(job, error=ProcessKilled(f"Ray lost it {RETRIES + 1} times. {why}"))
        return Ended(job, outcome, error)

    def _check_resources(self, threads: int, gpus: float) -> None:
        """Refuse what would wait forever."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= threads and node.get("GPU", 0) >= gpus for node in nodes):
            self._ray.shutdown()
            raise ConfigError(
                f"no node of the Ray cluster has {threads} CPUs and {gpus:g} GPUs, which a cell of this matrix needs. "
                "Change threads or gpus in the matrix file, or add a node.",
                field="ray",
            )


def _task(work: Callable[[Any], Any], job: Any) -> tuple[Any, Exception | None]:
    """A job in a process of the cluster, which does many."""
    return attempted(work, job)
