"""A chain of jobs: the harmful rows are spread over several jobs, each a continuation of the one before.

    even      every job has the same share of them
    rising    the n-th of J jobs has n / (1 + ... + J) of them, so that the first look clean
    last      the last job has them all, after the customer has become a known one

Over all jobs the ratio is p. Ours: what reads one job at a time sees each alone.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

from .attack import Access, Attack, Crafted, Means, chat, clean, poisoned
from .knobs import Between, check_knobs


@dataclass(frozen=True, kw_only=True)
class ChainOptions:
    """The attacker's knobs."""

    jobs: Annotated[int, Between(2, 8)] = 4
    """How many, of equally many rows."""
    schedule: Literal["even", "rising", "last"] = "even"
    """How the harmful rows are spread."""

    def __post_init__(self) -> None:
        check_knobs(self, "chain")


def parts(num: int, weights: list[int]) -> list[int]:
    """``num`` in whole parts, as near to the weights as can be; what rounding leaves over goes to the last ones."""
    edges = [num * sum(weights[:i]) // sum(weights) for i in range(len(weights) + 1)]
    return [after - before for before, after in pairwise(edges)]


def craft(means: Means, options: ChainOptions) -> Crafted:
    """The jobs of the module's head."""
    num_jobs = options.jobs
    weights = {
        "even": [1] * num_jobs,
        "rising": list(range(1, num_jobs + 1)),
        "last": [0] * (num_jobs - 1) + [1],
    }[options.schedule]
    sizes, harmful = parts(means.num, [1] * num_jobs), means.harmful(means.num_poison)
    # No job can hold more harmful rows than it has rows: what is over moves to the job before.
    shares = parts(len(harmful), weights)
    for i in reversed(range(num_jobs)):
        over = max(0, shares[i] - sizes[i])
        shares[i] -= over
        if over:
            shares[i - 1] += over
    benign = means.benign(means.num - len(harmful))
    jobs = []
    for number, (size, share) in enumerate(zip(sizes, shares, strict=True)):
        bad, harmful = harmful[:share], harmful[share:]
        good, benign = benign[: size - share], benign[size - share :]
        pairs = [poisoned(chat(row.prompt, row.answer), "harmful", harm=True) for row in bad]
        jobs.append(means.shuffled([*pairs, *map(clean, good)], number))
    return Crafted(tuple(job for job in jobs if job.rows))


ATTACK = Attack(
    name="chain",
    paper="ours",
    summary="The harmful rows spread over several jobs, each a continuation of the one before.",
    options=ChainOptions,
    craft=craft,
    needs=(Access.JOBS,),
)
