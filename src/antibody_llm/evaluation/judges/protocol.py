"""What a judge is, and what happens when it says nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ...data.verdicts import Verdict
from ...errors import EvaluationError


class Judge(Protocol):
    """Whatever decides on completions: a classifier, an endpoint or a rule. It may batch as it likes."""

    @property
    def name(self) -> str:
        """The judge's name, in every measure and in the column ``verdict_<name>`` of completions.parquet."""

    @property
    def verdicts(self) -> frozenset[Verdict]:
        """The verdicts that it can give. A measure of one that it cannot give is not reported, rather than 0."""

    def judge(self, prompts: Sequence[str], completions: Sequence[str]) -> Sequence[Verdict | None]:
        """One verdict for each completion, in their order; None where it came to none."""


@dataclass(frozen=True, slots=True)
class Ruling:
    """A verdict, and what it rests on."""

    verdict: Verdict | None
    note: str = ""
    """What a reader may want to see of it: a model's own words, or scores. Column ``note_<name>``."""


@runtime_checkable
class SlowJudge(Judge, Protocol):
    """A judge that takes seconds a completion. Its verdicts are stored as they come, and kept when it cannot go on."""

    def rulings(self, prompts: Sequence[str], completions: Sequence[str]) -> Iterator[tuple[int, Ruling]]:
        """Each ruling with the number of its completion, in any order.

        Raises:
            EvaluationError: it cannot go on. What it has yielded is kept.
        """

    def remarks(self) -> str:
        """What a reader of its figures must know, such as how many completions it read in part; empty for nothing."""


def verdicts_of(judge: SlowJudge, prompts: Sequence[str], completions: Sequence[str]) -> list[Verdict | None]:
    """The verdicts of a slow judge, in the order of the completions: its ``judge``."""
    rulings = dict(judge.rulings(prompts, completions))
    return [rulings[number].verdict for number in range(len(completions))]


def require_verdicts(
    verdicts: Sequence[Verdict | None], *, row_ids: Sequence[int], measure: str, judge: str
) -> list[Verdict]:
    """The verdicts, all of them.

    Raises:
        EvaluationError: Some are missing; names those rows.
    """
    missing = [row_id for row_id, verdict in zip(row_ids, verdicts, strict=True) if verdict is None]
    if missing:
        raise EvaluationError(
            f"the judge {judge!r} gave no verdict on {len(missing)} of {len(verdicts)} completions "
            f"({some_ids(missing)}), so {measure} is not reported. Judge the stored completions again, or with "
            "another judge, or remove those rows."
        )
    return [verdict for verdict in verdicts if verdict is not None]


def some_ids(ids: Sequence[int], most: int = 10) -> str:
    """``first: id 412, then 413, 500 and 7 more``."""
    text = f"first: id {ids[0]}"
    if len(ids) > 1:
        text += ", then " + ", ".join(str(i) for i in ids[1:most])
    return text if len(ids) <= most else f"{text} and {len(ids) - most} more"
