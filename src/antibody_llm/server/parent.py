"""A process that ends with the one that started it."""

import ctypes
import os
import sys
from contextlib import suppress

PARENT = "ANTIBODY_PARENT"
"""Variable in which the server tells the processes that it starts its own process id."""
_PR_SET_PDEATHSIG = 1


def die_with_parent(number: int, parent: int | None = None) -> None:
    """Have this process get a signal when its parent ends, on systems that can do that (Linux).

    Args:
        number: The signal.
        parent: The parent's process id; None: what the environment says. Without either, a parent that has ended before
            this was called is not noticed.
    """
    if parent is None:
        parent = int(os.environ.get(PARENT) or os.getppid())
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it ended in between
        sys.exit(1)
