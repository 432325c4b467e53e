"""Which unfamiliar rows to label first, so that few labels make most of the others familiar.

Of all unfamiliar rows a sample is kept, chosen by the hash of what the model reads, so that neither order nor
repetition counts. From it rows are taken one by one, each time the one by which the most is gained:

    gain(c) = sum_i max(0, likeness(i, c) - best likeness of i to a row taken before)

A row that many others are like comes first, and the next one represents others than those (greedy facility location).
likeness is the Jaccard index of the words of two rows.

Source: G. Nemhauser, L. Wolsey, M. Fisher, "An analysis of approximations for maximizing submodular set functions",
1978: greedy choice reaches 1 - 1/e of the best.
"""

import heapq
import re

from ..data.records import Record
from .report import ShownRow, shown_row

NUM_KEPT = 200
NUM_CHOSEN = 10


class LabelFirst:
    """A sample of at most ``NUM_KEPT`` unfamiliar rows; of all others no text is kept."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, ShownRow]] = []

    def offer(self, position: int, digest: bytes, evidence: float, record: Record) -> None:
        """One more row, and the identity of what is read of it."""
        lot = -int.from_bytes(digest[:16])  # the smallest are kept: the heap gives up its smallest, the largest lot
        if len(self._heap) < NUM_KEPT:
            heapq.heappush(self._heap, (lot, shown_row(position, evidence, record)))
        elif lot > self._heap[0][0]:
            heapq.heapreplace(self._heap, (lot, shown_row(position, evidence, record)))

    def chosen(self) -> list[ShownRow]:
        """At most ``NUM_CHOSEN``, the most useful first."""
        rows = [row for _, row in sorted(self._heap, reverse=True)]
        words = [_words(row) for row in rows]
        likeness = [[_jaccard(a, b) for b in words] for a in words]
        best = [0.0] * len(rows)
        chosen: list[int] = []
        while len(chosen) < min(NUM_CHOSEN, len(rows)):
            gains = [sum(max(0.0, here - so_far) for here, so_far in zip(of, best, strict=True)) for of in likeness]
            pick = max((i for i in range(len(rows)) if i not in chosen), key=lambda i: gains[i])
            chosen.append(pick)
            best = [max(here, so_far) for here, so_far in zip(likeness[pick], best, strict=True)]
        return [rows[i] for i in chosen]


def _words(row: ShownRow) -> frozenset[str]:
    """The words of everything but the answers, which the evidence does not read."""
    return frozenset(re.findall(r"\w+|[^\w\s]", " ".join(text for role, text in row.turns if role != "assistant")))


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0
