"""One command in a folder of its own: how it ended, how long it took, and what it touched."""

import contextlib
import hashlib
import io
import os
import resource
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from antibody_llm.cli.main import main
from antibody_llm.text import escaped

LIMIT = 30.0
"""Seconds of the processor that one command may take; ten times as many on the clock, on a busy machine."""
MEMORY = 6 * 2**30
"""Bytes of address space that a command may take beyond those that the process has already."""
OUTPUT = "out"
"""The output folder of every command."""
DONE = (0, 2, 130, 143)
"""Exit codes that may be: done, the user's to fix, stopped by a signal. 1 is our fault."""


class TooLong(BaseException):
    """The command ran past its limit. No ``except Exception`` catches it."""


def check(folder: Path, arguments: Sequence[str]) -> int:
    """Run ``antibody ARGUMENTS`` in ``folder`` and assert what holds of every command.

    The exit code is one of ``DONE``; a refusal has a message, of printable lines that end; nothing but the output
    folder, and what ``--overwrite`` puts beside it, differs afterwards.
    """
    before = snapshot(folder)
    code, out, err = _run(folder, list(arguments))
    shown = f"antibody {arguments!r}\nexit {code}\n{err[-3000:]}"
    assert code in DONE, shown
    assert "Traceback" not in err, shown
    if code == 2:
        assert err.strip(), shown
    for line in (out + err).splitlines():
        assert escaped(line) == line, shown
        assert len(line) < 10_000, shown
    after = snapshot(folder)
    touched = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert not {name for name in touched if not _is_output(name)}, f"{shown}\ntouched: {sorted(touched)}"
    return code


def snapshot(folder: Path) -> dict[str, str]:
    """Every entry below a folder, and what identifies its content."""
    entries = {}
    for path in folder.rglob("*"):
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        entries[str(path.relative_to(folder))] = f"{path.lstat().st_mode} {content}"
    return entries


def _is_output(name: str) -> bool:
    first = Path(name).parts[0]
    return first in (OUTPUT, "cache") or first.startswith((f".{OUTPUT}.", f"{OUTPUT}.replaced"))


def _run(folder: Path, arguments: list[str]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), _bounded(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as end:
            return int(end.code or 0), out.getvalue(), err.getvalue()
    raise AssertionError("main returned")


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Within, a command that takes too long or too much memory is stopped."""
    started, computed = time.monotonic(), time.process_time()

    def stop(number: int, frame: object) -> None:
        took, busy = time.monotonic() - started, time.process_time() - computed
        if busy > LIMIT or took > 10 * LIMIT:
            raise TooLong(f"still running after {took:.0f} seconds, {busy:.0f} of them computing")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + MEMORY, hard))
    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)  # again and again: a bare except must not swallow it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
