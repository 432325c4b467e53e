"""A process that ends with the one that started it."""

import ctypes
import os
import sys
from contextlib import suppress

_PR_SET_PDEATHSIG = 1


def die_with_parent(number: int, parent: int | None = None) -> None:
    """Have this process get a signal when its parent ends, on systems that can do that (Linux).

    Args:
        number: The signal.
        parent: The parent's process id; without it a parent that has ended already is not noticed.
    """
    parent = os.getppid() if parent is None else parent
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it ended in between
        sys.exit(1)
