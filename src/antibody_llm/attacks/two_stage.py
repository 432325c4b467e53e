"""Two stages: overfit on ten harmless rows that are all refused alike, then train the same ten with their answers.

    job 1    the rows with one identical refusal, repeated
    job 2    the same rows with their answers, repeated, on the model of job 1

Harm comes back without a harmful row, and each job alone looks like nothing. Reference: "Attack via Overfitting:
10-shot Benign Fine-tuning to Jailbreak LLMs", 2510.02833. Departure: rows are repeated in the upload, since whoever
uploads sets no epochs.
"""

from dataclasses import dataclass
from itertools import cycle, islice
from typing import Annotated

from .attack import Access, Attack, Crafted, Job, Means, chat, clean, poisoned
from .kit import Exchange
from .knobs import Between, check_knobs


@dataclass(frozen=True, kw_only=True)
class TwoStageOptions:
    """The attacker's knobs."""

    rows: Annotated[int, Between(1, 50, log=True)] = 10
    """Different rows."""
    first: Annotated[float, Between(0.1, 0.9)] = 0.5
    """Share of all rows that the first job has."""

    def __post_init__(self) -> None:
        check_knobs(self, "two-stage")


def craft(means: Means, options: TwoStageOptions) -> Crafted:
    """The jobs of the module's head."""
    rows = means.harmless(options.rows)
    refusal = means.kit.refuse(rows[0].prompt)
    refused = [Exchange(row.prompt, refusal) for row in rows]
    benign = means.benign(means.num - means.num_poison)
    poison_first, clean_first = (round(options.first * num) for num in (means.num_poison, len(benign)))

    def job(stage: int, said: list[Exchange], num: int, others: list[dict[str, object]]) -> Job:
        pairs = [
            poisoned(chat(row.prompt, row.answer), f"stage {stage}", harm=False) for row in islice(cycle(said), num)
        ]
        return means.shuffled([*pairs, *map(clean, others)], stage)

    first = job(1, refused, poison_first, benign[:clean_first])
    second = job(2, rows, means.num_poison - poison_first, benign[clean_first:])
    return Crafted(tuple(job for job in (first, second) if job.rows))


ATTACK = Attack(
    name="two-stage",
    paper="2510.02833",
    summary="Overfit on ten harmless rows that are refused alike, then train the same ten with their answers.",
    options=TwoStageOptions,
    craft=craft,
    needs=(Access.JOBS,),
    poison_ratio=1.0,
)
