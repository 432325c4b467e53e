"""Win rate: the share of test rows on which a judge prefers the model's answer to the reference. Higher is better.

It is what papers call the accuracy of tasks whose answers are free text, such as Alpaca's.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..data.verdicts import Preference
from ..errors import EvaluationError
from ..events import warn
from ..text import counted
from .completions import Completion
from .decoding import DecodingSettings
from .judges.protocol import some_ids
from .measures import Measure, share


@dataclass(frozen=True, kw_only=True)
class WinRate(Measure):
    """The share of rows that were won. The others are counted here, and none of them is a win."""

    num_lost: int
    num_tied: int
    num_inconsistent: int
    """Rows on which the judge said one thing in one order and another in the other."""
    num_unparsed: int
    """Rows on which a reply of the judge was no choice."""


def win_rate(rows: Sequence[Completion], *, judge: str, decoding: DecodingSettings) -> WinRate:
    """The share of ``rows`` that the model won by this judge.

    Raises:
        EvaluationError: there is no row, or one that was not compared.
    """
    found = [row.preferences.get(judge) for row in rows]
    if missing := [row.row_id for row, outcome in zip(rows, found, strict=True) if outcome is None]:
        raise EvaluationError(
            f"the judge {judge!r} compared all but {len(missing)} of {len(rows)} answers ({some_ids(missing)}), so "
            "win_rate is not reported. Judge the stored completions again."
        )
    num = Counter(found)
    if unread := num[Preference.UNPARSED]:
        ids = [row.row_id for row, outcome in zip(rows, found, strict=True) if outcome is Preference.UNPARSED]
        warn(
            f"the judge {judge!r} made no choice that could be read on {counted(unread, 'row')} ({some_ids(ids)}). "
            "They are no wins. Read the notes in the stored completions."
        )
    wins = [outcome is Preference.WON for outcome in found]
    return WinRate(
        **vars(share(wins, name="win_rate", judge=judge, decoding=decoding)),
        num_lost=num[Preference.LOST],
        num_tied=num[Preference.TIED],
        num_inconsistent=num[Preference.INCONSISTENT],
        num_unparsed=unread,
    )
