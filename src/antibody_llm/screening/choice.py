"""The choice of unfamiliar rows to label first, so that few labels make most of the others familiar.

A sample of the unfamiliar rows is kept, chosen by the hash of what the model reads, so that neither order nor
repetition counts. Rows are taken from it one by one, each time the one with the largest gain:

    gain(c) = sum_i max(0, likeness(i, c) - best likeness of i to a row taken before)

A row that many others resemble comes first, and the next one represents other rows (greedy facility location).
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
    """A sample of at most ``NUM_KEPT`` unfamiliar rows; no text of the others is kept."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, ShownRow]] = []

    def offer(self, position: int, digest: bytes, evidence: float, record: Record) -> None:
        """Consider one more row for the sample.

        Args:
            position: Its place in the upload, 0-based.
            digest: Its ``row_digest``.
            evidence: High means harm.
            record: Its content.
        """
        lot = -int.from_bytes(digest[:16])  # the smallest lots are kept: the heap drops the largest
        if len(self._heap) < NUM_KEPT:
            heapq.heappush(self._heap, (lot, shown_row(position, evidence, record)))
        elif lot > self._heap[0][0]:
            heapq.heapreplace(self._heap, (lot, shown_row(position, evidence, record)))

    def chosen(self) -> list[ShownRow]:
        """At most ``NUM_CHOSEN`` rows to label, the most useful first."""
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
    """The words of a row without its answers, which the evidence does not read."""
    return frozenset(re.findall(r"\w+|[^\w\s]", " ".join(text for role, text in row.turns if role != "assistant")))


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0
