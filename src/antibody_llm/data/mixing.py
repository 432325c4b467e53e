"""A user's upload with an exact share of harmful rows."""

import random
from collections.abc import Sequence
from dataclasses import replace

from ..errors import ConfigError, DataError
from ..mentions import setting
from ..text import counted
from .records import Record


def mix(
    benign: Sequence[Record], harmful: Sequence[Record], *, num: int, poison_ratio: float, seed: int
) -> tuple[list[Record], list[bool]]:
    """``num`` rows of which exactly ``round(poison_ratio * num)`` are harmful, drawn without replacement and shuffled.

    Returns:
        rows: [num], ``row_id`` is the position in the mixture; source and line still say where a row came from.
        is_harmful: [num], the truth. It travels beside the rows; a trainer never sees it.

    Raises:
        ConfigError: ``num`` or ``poison_ratio`` out of range.
        DataError: one side has fewer rows than it must give.
    """
    if num < 1:
        raise ConfigError(f"{setting('num')} is {num}: a mixture needs at least one row.")
    if not 0 <= poison_ratio <= 1:
        raise ConfigError(f"{setting('poison_ratio')} is {poison_ratio}: it is a share between 0 and 1.")
    num_harmful = round(poison_ratio * num)
    rng = random.Random(seed)
    drawn = [(row, True) for row in _draw(harmful, num_harmful, "harmful", rng)]
    drawn += [(row, False) for row in _draw(benign, num - num_harmful, "benign", rng)]
    rng.shuffle(drawn)
    return [replace(row, row_id=index) for index, (row, _) in enumerate(drawn)], [harm for _, harm in drawn]


def _draw(rows: Sequence[Record], num: int, kind: str, rng: random.Random) -> list[Record]:
    if len(rows) < num:
        where = f"{rows[0].source}: " if rows else ""
        raise DataError(
            f"{where}{counted(len(rows), f'{kind} row')} where {num} are needed. Give more rows, or change num or "
            "poison_ratio."
        )
    return rng.sample(list(rows), num)
