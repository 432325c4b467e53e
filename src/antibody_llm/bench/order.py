"""The order of an upload, where a service that shuffles rows leaves an attacker one: over jobs.

first    the attacker's rows in a job of their own, then the clean ones in a continuation of it
last     the clean rows first, the attacker's in the continuation
"""

from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

from ..attacks.attack import Crafted, Job


class Order(StrEnum):
    """Which rows of one upload become the first job."""

    FIRST = "first"
    LAST = "last"


def in_order(crafted: Crafted, order: Order) -> Crafted:
    """One upload as two jobs; an attack that has an order of its own keeps it, as does an upload of one kind of row."""
    if len(crafted.jobs) != 1:
        return crafted
    (whole,) = crafted.jobs
    attackers, clean = (_some(whole, kind) for kind in (lambda poison: poison, lambda poison: not poison))
    parts = (attackers, clean) if order is Order.FIRST else (clean, attackers)
    return replace(crafted, jobs=tuple(job for job in parts if job.rows))


def _some(whole: Job, wanted: Callable[[bool], bool]) -> Job:
    pairs = [pair for pair in zip(whole.rows, whole.truth, strict=True) if wanted(pair[1]["is_poison"])]
    return Job([row for row, _ in pairs], [truth for _, truth in pairs])
