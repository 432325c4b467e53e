"""``report.html`` of a screening: one self-contained file. Texts of rows are escaped, and folded until opened.

Text of an upload is isolated in its own direction (``bdi``), and characters that are invisible, or would turn the text
around them, are shown by their number.
"""

import heapq
import io
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import jinja2
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..data.records import Record
from ..primitives.density import density
from .answers import Span
from .evidence import EvidenceKind

NUM_ROWS_SHOWN = 200
NUM_CHARACTERS_SHOWN = 2_000
"""Characters of each message that the report shows."""
NUM_BINS = 60
HARM, BENIGN, ROWS = "#c0392b", "#1f6f8b", "#c9d1d6"


@dataclass(frozen=True, order=True)
class ShownRow:
    """A row that the report may show; it sorts by suspicion, among equals the earlier row first.

    Attributes:
        evidence: High means harm.
        before: The row's position with its sign turned.
        turns: Role and text of each message, cut to ``NUM_CHARACTERS_SHOWN``.
    """

    evidence: float
    before: int
    turns: tuple[tuple[str, str], ...] = field(compare=False)

    @property
    def position(self) -> int:
        """The row's place in the upload, 0-based."""
        return -self.before


class MostSuspicious:
    """The ``NUM_ROWS_SHOWN`` rows of the highest evidence; no text of the others is kept."""

    def __init__(self) -> None:
        self._heap: list[ShownRow] = []

    def offer(self, position: int, evidence: float, record: Record) -> None:
        """Consider one more row."""
        if len(self._heap) < NUM_ROWS_SHOWN:
            heapq.heappush(self._heap, shown_row(position, evidence, record))
        elif (evidence, -position) > (self._heap[0].evidence, self._heap[0].before):
            heapq.heapreplace(self._heap, shown_row(position, evidence, record))

    def sorted(self) -> list[ShownRow]:
        """The rows, the most suspicious first."""
        return sorted(self._heap, reverse=True)


def shown_row(position: int, evidence: float, record: Record) -> ShownRow:
    """A row as the report may show it."""
    turns = tuple((message.role, _cut(message.content)) for message in record.messages)
    return ShownRow(evidence, -position, turns)


Marked = tuple[tuple[str, tuple[tuple[str, bool], ...]], ...]
"""Role of each message, and its text in parts, each with whether it reads as harm."""


def marked(turns: Sequence[tuple[str, str]], spans: Sequence[Span]) -> Marked:
    """Texts in parts; the n-th answer of the spans is the n-th message of the assistant's."""
    found, answer = [], -1
    for role, text in turns:
        answer += role == "assistant"
        edges = [0, *(e for turn, a, b in spans if role == "assistant" and turn == answer for e in (a, b)), len(text)]
        parts = [(text[a:b], bool(i % 2)) for i, (a, b) in enumerate(pairwise(edges)) if a < b]
        found.append((role, tuple(parts)))
    return tuple(found)


def _cut(text: str) -> str:
    more = len(text) - NUM_CHARACTERS_SHOWN
    return text if more <= 0 else f"{text[:NUM_CHARACTERS_SHOWN]} [... {more} more characters]"


def visible(text: str) -> str:
    """Show control characters, and those that turn or hide text (bidirectional, zero-width), by their number: U+202E.

    Unlike ``text.escaped``, which fits a message on one line, this leaves line breaks, tabs and spaces alone.
    """
    return "".join(
        f"[U+{ord(c):04X}]" if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c
        for c in text
    )


def render_report(
    summary: Mapping[str, Any],
    shown: Sequence[tuple[ShownRow, Mapping[str, Any], int]],
    label_first: Sequence[ShownRow],
    evidence: Tensor,
    anchors: tuple[Tensor, Tensor] | None,
    answers: Sequence[tuple[int, ShownRow, Marked]] = (),
) -> str:
    """Render the page.

    Args:
        summary: The content of summary.json.
        shown: Rows by suspicion, each with its line of rows.jsonl and how often it occurs in the upload.
        label_first: Unfamiliar rows, the most useful ones to label first.
        evidence: [n], evidence of all rows that were read.
        anchors: Evidence of the harmful and the benign anchors; None where there are none.
        answers: Rows whose answers hold something that reads as harm: line, row, texts in parts.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("antibody_llm.screening"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["visible"] = visible
    return environment.get_template("screen.html").render(
        s=summary,
        shown=shown,
        label_first=label_first,
        answers=answers,
        prompt_alone=not EvidenceKind(summary["measure"]).needs_answers and summary["num_spans"] is None,
        histogram=_histogram(
            evidence,
            anchors,
            0.5 if (share := summary["estimated_harmful_share"]) is None else share,
            summary["measure"],
        ),
    )


def _histogram(evidence: Tensor, anchors: tuple[Tensor, Tensor] | None, share: float, measure: str) -> str:
    """A histogram of the evidence, with what the anchors lead to expect of each component, as SVG."""
    edges = _edges(torch.cat([evidence, *(anchors or ())]))
    counts = torch.histogram(evidence.double(), edges).hist
    figure = Figure(figsize=(8, 3.3), layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    axis.stairs(counts.tolist(), edges.tolist(), fill=True, color=ROWS, label="rows of the upload")
    if anchors is not None:
        width = float(edges[1] - edges[0])
        where = torch.linspace(float(edges[0]), float(edges[-1]), 400, dtype=torch.float64)
        parts = (("harmful", HARM, share, anchors[0]), ("benign", BENIGN, 1 - share, anchors[1]))
        for label, colour, part, scores in parts:
            height = density(scores.double(), where) * part * len(evidence) * width
            axis.plot(where.tolist(), height.tolist(), color=colour, label=f"{label} anchors × {100 * part:.1f} %")
    axis.set_yscale("symlog", linthresh=1)  # a few harmful rows among many benign ones must still be seen
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.set(xlabel=f"evidence ({measure}); further right is more suspicious", ylabel="rows")
    axis.legend(frameon=False, fontsize=9)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _edges(values: Tensor) -> Tensor:
    """Edges of the bins, beyond every value: [NUM_BINS + 1], float64."""
    low, high = float(values.min()), float(values.max())
    margin = 0.02 * (high - low) or 0.5
    return torch.linspace(low - margin, high + margin, NUM_BINS + 1, dtype=torch.float64)
