"""Processes started as ``python -m MODULE`` starts them, without the seconds in which Python imports torch.

``install`` forks a helper from a process that has imported the libraries. From then on ``subprocess.Popen`` has the
helper fork, twice, for the commands of ``MODULES``: the process between ends at once, so that the new one becomes the
child of whoever asked. Parents, sessions, pipes, environments, folders and death signals are as they are in production;
besides the interpreter's start, the helper is the only difference.
"""

import array
import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

PDEATHSIG, SUBREAPER = 1, 36
_LIBC = ctypes.CDLL(None)


def prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        raise OSError("prctl failed: this needs Linux")


class Warm(subprocess.Popen):  # type: ignore[type-arg]
    """``Popen`` that lets the helper start what is in ``modules``."""

    modules: Mapping[str, Callable[[list[str]], object]] = {}
    helper: socket.socket | None = None
    lock = threading.Lock()

    def _execute_child(self, *args: Any) -> None:
        names = ("args", "executable", "preexec_fn", "close_fds", "pass_fds", "cwd", "env", "startupinfo")
        names += ("creationflags", "shell", "p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        names += ("restore_signals", "gid", "gids", "uid", "umask", "start_new_session", "process_group")
        given = dict(zip(names, args, strict=True))
        command = given["args"]
        warm = isinstance(command, list) and command[:2] == [sys.executable, "-m"] and command[2] in self.modules
        if not warm or self.helper is None:
            super()._execute_child(*args)  # type: ignore[misc]
            return
        request = {
            "module": command[2],
            "arguments": command[3:],
            "cwd": os.fspath(given["cwd"] or os.getcwd()),
            "env": dict(given["env"] or os.environ),
            "session": given["start_new_session"],
        }
        standard = (given["p2cread"], given["c2pwrite"], given["errwrite"])
        passed = [number if each == -1 else each for number, each in enumerate(standard)]
        with self.lock:
            send(self.helper, request, passed)
            self.pid = int(self.helper.recv(32))
        self._child_created = True
        self._close_pipe_fds(*(given[name] for name in names[10:16]))  # type: ignore[attr-defined]


def send(to: socket.socket, request: Mapping[str, Any], descriptors: list[int]) -> None:
    content = json.dumps(request).encode()
    to.sendmsg(
        [len(content).to_bytes(8, "little")],
        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))],
    )
    to.sendall(content)


def receive(source: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    head, ancillary, _, _ = source.recvmsg(8, socket.CMSG_SPACE(3 * 4))
    if not head:
        return None
    descriptors = array.array("i")
    descriptors.frombytes(ancillary[0][2])
    length, content = int.from_bytes(head, "little"), b""
    while len(content) < length:
        content += source.recv(length - len(content))
    return json.loads(content), list(descriptors)


def install(modules: Mapping[str, Callable[[list[str]], object]]) -> None:
    """Fork a helper of this process, which must have one thread.

    Args:
        modules: Name of a module to what ``python -m`` does with it, given the arguments behind the name.
    """
    prctl(SUBREAPER, 1)
    here, there = socket.socketpair()
    parent = os.getpid()
    if os.fork() == 0:
        prctl(PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        here.close()
        if os.getppid() == parent:
            _help(there, modules)
        os._exit(0)
    there.close()
    Warm.modules, Warm.helper = modules, here
    subprocess.Popen = Warm  # type: ignore[misc]


def _help(source: socket.socket, modules: Mapping[str, Callable[[list[str]], object]]) -> None:
    while (received := receive(source)) is not None:
        request, descriptors = received
        between = os.fork()
        if between == 0:
            between = os.getpid()
            pid = os.fork()
            if pid == 0:
                _become(request, descriptors, modules, between)
            source.sendall(str(pid).encode())
            os._exit(0)
        for each in descriptors:
            os.close(each)
        os.waitpid(between, 0)


def _become(
    request: Mapping[str, Any], descriptors: list[int], modules: Mapping[str, Callable[..., object]], between: int
) -> None:
    """Be the process that was asked for, until it ends; ``between`` is its parent until that ends."""
    for number, each in enumerate(descriptors):
        os.dup2(each, number)
    os.closerange(3, 4096)
    while os.getppid() == between:
        time.sleep(0.0005)
    if request["session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [request["module"], *request["arguments"]]
    # Text files of their own: those of the process that was forked may hold somebody's buffered words.
    sys.stdin, sys.stdout, sys.stderr = (open(number, mode, closefd=False) for number, mode in enumerate("rww"))  # noqa: SIM115
    end(lambda: modules[request["module"]](request["arguments"]))


def end(body: Callable[[], object]) -> None:
    """Run the body of a forked process, and end it as the interpreter would."""
    code: Any = 1
    random.seed()
    try:
        body()
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
