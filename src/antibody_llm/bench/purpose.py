"""The half of the lab's world that results are of.

Settings are chosen on the half for ``calibrate``; figures are of the half for ``report``. A row of results without
``purpose`` is older than the halves and of the whole world, on whose prompts the lab's settings were chosen then. Rows
of the two never make one table.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ConfigError
from ..lab.world import REPORT

WHOLE = "whole"
"""What a command line calls both halves together."""


def purpose_of(rows: Iterable[Mapping[str, Any]], of: str) -> str | None:
    """The purpose that all rows have; None is the whole world. ``REPORT`` where there is no row.

    Args:
        rows: Rows of results.
        of: What they are read from, for the message.

    Raises:
        ConfigError: they are of two.
    """
    found = list(dict.fromkeys(row.get("purpose") for row in rows))
    if len(found) > 1:
        raise ConfigError(
            f"{of}: some rows are of {described(found[0])}, others of {described(found[1])}. They were asked other "
            "prompts, and make no table together. Keep each in a file or folder of its own."
        )
    return found[0] if found else REPORT


def described(purpose: str | None) -> str:
    """The part of the world in words."""
    return "the whole of the lab's world" if purpose is None else f"the half of the lab's world for `{purpose}`"
