"""One stage of a job, in a process of its own: JSON on standard input, events as JSON Lines on standard output.

    {"stage": "screen" | "train" | "measure", "memory_bytes": 0, "settings": {...}}

    {"event": "resolved", "hyperparameters": {...}}            what "auto" came to
    {"event": "step", "step": 3, "num_steps": 250, "tokens": 812, "metrics": {"loss": ...}}
    {"event": "checkpoint", "step": 50, "planned": true, "folder": "..."}    a copy that the reader may take and remove
    {"event": "notice", "message": "..."}
    {"event": "result", ...}                                   last, where the stage came to its end
    {"event": "stopped", "step": 57}                           last, after SIGTERM: the run's folder goes on from there
    {"event": "failed", "kind": "DataError", "message": "..."}  last

The process dies with the one that started it, has no network where the kernel lets it give that up, and what a library
prints goes to standard error.
"""

import ctypes
import json
import logging
import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..events import Stopped
from .parent import die_with_parent
from .verbs import STAGES, Emit, Stop

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000


def main() -> None:
    """Carry out the stage that standard input names."""
    _leave_network()  # first: it makes the kernel forget whose death is to be this process's
    spec = json.loads(sys.stdin.read())
    die_with_parent(signal.SIGKILL, spec["parent"])
    if spec.get("memory_bytes"):
        resource.setrlimit(resource.RLIMIT_AS, (spec["memory_bytes"], spec["memory_bytes"]))
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(event: str, fields: dict[str, Any]) -> None:
        events.write(json.dumps({"event": event, **fields}, default=str) + "\n")
        events.flush()

    _quiet()
    stop = Stop()
    signal.signal(signal.SIGTERM, stop)
    sys.exit(run(spec, emit, stop))


def run(spec: Mapping[str, Any], emit: Emit, stop: "Stop") -> int:
    """Carry a stage out and report its end, whatever that is."""
    try:
        if stop.asked:
            raise Stopped("stopped before it began")
        emit("result", STAGES[spec["stage"]](spec["settings"], emit, stop))
    except Stopped as stopped:
        emit("stopped", {"step": stopped.step})
    except BaseException as error:
        emit("failed", _described(error))
        return 1
    return 0


def _described(error: BaseException) -> dict[str, Any]:
    """What went wrong, and who can fix it."""
    from ..errors import AntibodyError

    if isinstance(error, AntibodyError):
        kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == AntibodyError.__module__)
        return {"kind": kind, "message": str(error)}
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in _OUT_OF_MEMORY):
        return {"kind": "OutOfMemory", "message": "the memory does not suffice"}
    if isinstance(error, OSError):
        return {"kind": "OutputError", "message": f"the operating system refuses ({error.strerror})"}
    # Where, and not what: the text of an error may repeat a row of the upload, which no log is to hold.
    trace = "".join(traceback.format_tb(error.__traceback__))[-4000:]
    return {"kind": type(error).__name__, "message": "unexpected", "trace": trace}


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def _leave_network() -> None:
    """Move to a network of its own that leads nowhere, where the kernel allows that to everybody."""
    user, group = os.getuid(), os.getgid()
    try:
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
            return
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    except (OSError, AttributeError):  # not Linux, or a container that forbids it
        return


def _quiet() -> None:
    """Have libraries say less on standard error."""
    warnings.filterwarnings("ignore")
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    for name in ("transformers", "trl", "peft", "accelerate", "datasets", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
