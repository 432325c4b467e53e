"""A job done once, by whichever process comes first, and timed."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..events import listening
from .job import Job
from .results import Results
from .settle import settle


def done_once(folder: Path, job: Job, work: Callable[[Results], dict[str, Any]]) -> dict[str, Any]:
    """Do a job, unless another process has done it meanwhile, and store what comes of it, with its times.

    Args:
        folder: Where results are.
        job: Its need is done.
        work: Does it, and returns its values.
    """
    settle(job.config["threads"])
    results = Results(folder)
    with results.locked(job), listening(lambda event: None):
        stored = results.read(job)
        if stored is not None:
            return stored
        begun, cpu = time.monotonic(), time.process_time()
        values = work(results)
        values |= {"seconds": time.monotonic() - begun, "cpu_seconds": time.process_time() - cpu}
        results.write(job, values)
        return values
