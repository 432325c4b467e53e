"""Write down with which versions, and on which machine, a run was made: environment.json."""

import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("antibody-llm", "torch", "transformers", "trl", "peft", "accelerate", "datasets")


def environment(seed: int) -> str:
    """The content of environment.json."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    found = {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
        "seed": seed,
        "device": ("cuda: " if torch.cuda.is_available() else "cpu: ") + device,
        "threads": torch.get_num_threads(),
    }
    return json.dumps(found, indent=2) + "\n"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the checkout that this package runs from; None where it is installed without one."""
    try:
        ended = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ended.stdout.strip() if ended.returncode == 0 else None
