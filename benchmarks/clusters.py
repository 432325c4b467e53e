"""A Ray cluster of this machine alone, for scripts and tests: on the loopback, with a token of its own."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE = 120.0


@contextmanager
def ray_cluster(folder: Path, *, cpus: int) -> Iterator[str]:
    """Start a cluster with so many worker processes; yields its address, and ends every process of it.

    Inside, the environment of this process has what its driver needs. Ray reads it once, when it is imported.

    Args:
        folder: Where it has its files; a short path, since the name of a socket has at most 107 bytes.
        cpus: Worker processes for jobs of one CPU.
    """
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / "token"
    token.write_text(secrets.token_hex(16), encoding="utf-8")
    ours = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["start", "--head", "--block", "--include-dashboard=false", "--disable-usage-stats", f"--num-cpus={cpus}"]
    words += [
        "--node-ip-address=127.0.0.1",
        f"--port={port}",
        f"--temp-dir={folder}",
        "--object-store-memory=100000000",
    ]
    with (folder / "log").open("wb") as log:
        head = subprocess.Popen(
            [str(Path(sys.executable).with_name("ray")), *words], stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait(head, folder / "log")
        yield f"127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            head.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _wait(head: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while "Ray runtime started" not in log.read_text(encoding="utf-8", errors="replace"):
        if head.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"no Ray cluster: {log.read_text(encoding='utf-8', errors='replace')[-2000:]}")
        time.sleep(0.2)
