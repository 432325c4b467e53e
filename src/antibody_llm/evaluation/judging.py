"""Completions and what a judge makes of them, stored as they come: a judge that fails costs no verdict it has given."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from ..errors import EvaluationError
from ..events import report_progress, warn
from ..text import counted
from .completions import JUDGED_SETS, Completion, EvaluationSet
from .judges.preference import Comparison, PreferenceJudge
from .judges.protocol import Judge, Ruling, SlowJudge

STORE_SECONDS = 5.0
"""The least time between two writes of the table while a slow judge works."""

Store = Callable[[Sequence[Completion]], None]
T = TypeVar("T")


def judge_completions(
    rows: Sequence[Completion], judge: Judge, *, keep: bool = False, store: Store | None = None
) -> list[Completion]:
    """The rows with this judge's verdicts added, in the sets that judges are asked about.

    Args:
        rows: Completions of any sets.
        judge: Asked about all of them, but for those that are kept.
        keep: Whether a slow judge's verdicts that the rows have already are kept. A quick judge is asked again.
        store: Called with all rows, again and again while a slow judge works, and in the end.

    Raises:
        EvaluationError: The judge did not give exactly one verdict, or None, per completion; or it could not go on,
            and what it had judged is stored.
    """
    if isinstance(judge, SlowJudge):
        judged = _judged_slowly(rows, judge, keep=keep, store=store)
    else:
        judged = _judged_at_once(rows, judge)
        if store is not None:
            store(judged)
    return judged


def compare_completions(
    rows: Sequence[Completion], judge: PreferenceJudge, *, store: Store | None = None
) -> list[Completion]:
    """The rows with this judge's preferences added, in the test set; those that a row has already are kept.

    Args:
        rows: Completions of any sets; every test row has a reference.
        judge: Asked about the test rows that it has not compared.
        store: Called with all rows, again and again while the judge works, and in the end.

    Raises:
        EvaluationError: the judge could not go on. What it had compared is stored.
    """
    places = [place for place, row in enumerate(rows) if row.set is EvaluationSet.TEST]
    open_places = [place for place in places if judge.name not in rows[place].preferences]
    asked = [rows[place] for place in open_places]
    found = judge.comparisons(
        [row.prompt for row in asked], [row.completion for row in asked], [row.reference or "" for row in asked]
    )

    def with_comparison(row: Completion, compared: Comparison) -> Completion:
        notes = dict(row.notes) | {judge.name: compared.note}
        return replace(row, preferences={**row.preferences, judge.name: compared.preference}, notes=notes)

    return _as_they_come(
        rows, places, open_places, found, with_comparison, what=f"comparing by {judge.name}", store=store
    )


def without_verdicts(rows: Sequence[Completion], judges: Sequence[Judge | PreferenceJudge]) -> list[Completion]:
    """The rows without what these judges said of them, for the judges to say it again."""
    names = {judge.name for judge in judges}
    return [
        replace(
            row,
            verdicts=_without(row.verdicts, names),
            preferences=_without(row.preferences, names),
            notes=_without(row.notes, names),
        )
        for row in rows
    ]


def _without(of_judges: Mapping[str, T], names: Collection[str]) -> dict[str, T]:
    return {judge: value for judge, value in of_judges.items() if judge not in names}


def _judged_at_once(rows: Sequence[Completion], judge: Judge) -> list[Completion]:
    asked = [row for row in rows if row.set in JUDGED_SETS]
    verdicts = judge.judge([row.prompt for row in asked], [row.completion for row in asked])
    if len(verdicts) != len(asked):
        raise EvaluationError(
            f"the judge {judge.name!r} gave {counted(len(verdicts), 'verdict')} on {len(asked)} completions, so it "
            "cannot be said which belongs to which. A judge gives one per completion, None where it comes to none."
        )
    answers = iter(verdicts)
    return [_with_ruling(row, judge.name, Ruling(next(answers))) if row.set in JUDGED_SETS else row for row in rows]


def _judged_slowly(
    rows: Sequence[Completion], judge: SlowJudge, *, keep: bool, store: Store | None
) -> list[Completion]:
    name = judge.name
    places = [place for place, row in enumerate(rows) if row.set in JUDGED_SETS]
    open_places = [place for place in places if not keep or rows[place].verdicts.get(name) is None]
    rulings = judge.rulings(
        [rows[place].prompt for place in open_places], [rows[place].completion for place in open_places]
    )
    judged = _as_they_come(
        rows,
        places,
        open_places,
        rulings,
        lambda row, ruling: _with_ruling(row, name, ruling),
        what=f"judging by {name}",
        store=store,
    )
    if remarks := judge.remarks():
        warn(f"the judge {name!r}: {remarks}")
    return judged


def _as_they_come(
    rows: Sequence[Completion],
    places: Sequence[int],
    open_places: Sequence[int],
    found: Iterator[tuple[int, T]],
    with_found: Callable[[Completion, T], Completion],
    *,
    what: str,
    store: Store | None,
) -> list[Completion]:
    """The rows with what a slow judge finds added, and stored while it works.

    Args:
        rows: All completions.
        places: Where those are that the judge is for.
        open_places: Where those are that it is asked about now.
        found: What it finds, each with its position in ``open_places``.
        with_found: A row with what was found of it.
        what: What the work is called.
        store: Called with all rows, again and again while the judge works, and in the end.
    """
    judged, done, stored = list(rows), len(places) - len(open_places), time.monotonic()
    report_progress(what, done, len(places))
    try:
        for number, one in found:
            judged[open_places[number]] = with_found(rows[open_places[number]], one)
            done += 1
            if store is not None and time.monotonic() - stored > STORE_SECONDS:
                store(judged)
                stored = time.monotonic()
            report_progress(what, done, len(places))
    except EvaluationError as error:
        if store is None:
            raise
        raise EvaluationError(
            f"{error.message} {done} of {len(places)} completions are judged and kept; the same call goes on from "
            "there.",
            field=error.field,
        ) from error
    finally:
        if store is not None:
            store(judged)
    return judged


def _with_ruling(row: Completion, judge: str, ruling: Ruling) -> Completion:
    notes = dict(row.notes) | ({judge: ruling.note} if ruling.note else {})
    return replace(row, verdicts={**row.verdicts, judge: ruling.verdict}, notes=notes)
