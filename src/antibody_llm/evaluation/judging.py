"""Completions and what a judge makes of them, stored as they come: a judge that fails costs no verdict it has given."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..errors import EvaluationError
from ..events import report_progress, warn
from ..text import counted
from .completions import JUDGED_SETS, Completion
from .judges.protocol import Judge, Ruling, SlowJudge

STORE_SECONDS = 5.0
"""The least time between two writes of the table while a slow judge works."""

Store = Callable[[Sequence[Completion]], None]


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
    name, judged = judge.name, list(rows)
    places = [place for place, row in enumerate(rows) if row.set in JUDGED_SETS]
    open_places = [place for place in places if not keep or rows[place].verdicts.get(name) is None]
    done, stored = len(places) - len(open_places), time.monotonic()
    report_progress(f"judging by {name}", done, len(places))
    rulings = judge.rulings(
        [rows[place].prompt for place in open_places], [rows[place].completion for place in open_places]
    )
    try:
        for number, ruling in rulings:
            judged[open_places[number]] = _with_ruling(rows[open_places[number]], name, ruling)
            done += 1
            if store is not None and time.monotonic() - stored > STORE_SECONDS:
                store(judged)
                stored = time.monotonic()
            report_progress(f"judging by {name}", done, len(places))
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
    if remarks := judge.remarks():
        warn(f"the judge {name!r}: {remarks}")
    return judged


def _with_ruling(row: Completion, judge: str, ruling: Ruling) -> Completion:
    notes = dict(row.notes) | ({judge: ruling.note} if ruling.note else {})
    return replace(row, verdicts={**row.verdicts, judge: ruling.verdict}, notes=notes)
