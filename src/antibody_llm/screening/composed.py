"""Answers that show what harm looks like token by token, composed of the anchors' own prompts and answers.

    under            the answer is
    h's own prompt   h
    b's prompt       h
    b's prompt       b', the words of h's prompt, h, b''
    h's own prompt   a refusal

    b's own prompt   b
    b's own prompt   a refusal, then b
    another's, b'    b
    another's, b'    b, the words of another prompt, its answer
    another's, b'    words of harmless rows in random order
    h's prompt       b

h is the answer of a harmful anchor, b that of a harmless one; each anchor has one row of every kind of its half.
Harm under a harmless prompt, harm within a harmless answer, and harmless answers that neither model expects are in no
provider's file, and they are what evidence of tokens has to tell apart. The words of a prompt are its tokens without
those that all prompts of its template begin and end with. In an answer that embeds them, the words of a harmful prompt
are neither harm nor not: a question alone teaches nothing.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..data.records import TokenizedRow
from ..likelihood.refusals import Refusals
from .anchors import Anchors

FOLDS = 4
MAX_ANCHORS = 128
"""Anchors of a label that answers are composed of; more are thinned out evenly."""
HARM, REST, NEITHER = 1, 0, -1
"""What a token is. ``NEITHER`` is not counted."""

Segment = tuple[Sequence[int], int]
"""Tokens, and what they are."""
Joined = tuple[tuple[int, ...], tuple[int, int], tuple[int, ...]]
"""The tokens of a row, the span of its answer, and what each token of the answer is."""


@dataclass(frozen=True, slots=True)
class ComposedRow:
    """A composed row.

    Attributes:
        row: One prompt with one answer.
        labels: What each token of the answer is; the last one ends the turn and is ``NEITHER``.
        fold: Its anchors are all of this fold, 0 to ``FOLDS`` - 1.
        asked_for_harm: Whether its prompt is a harmful anchor's.
    """

    row: TokenizedRow
    labels: tuple[int, ...]
    fold: int
    asked_for_harm: bool

    @property
    def harmful(self) -> bool:
        """Whether any of the answer is harm."""
        return HARM in self.labels


def composed(anchors: Anchors, refusals: Refusals, *, longest: int | None = None) -> list[ComposedRow]:
    """Compose answers of the anchors, the same ones for the same anchors.

    Args:
        anchors: The labelled rows stored with the model.
        refusals: Refusals, by template.
        longest: Tokens that the model can read; longer rows are left out. None: any.
    """
    rng = random.Random("composed answers")
    rows: list[ComposedRow] = []
    for template in sorted({row.template for row in anchors.rows}):
        sides = (anchors.rows[: anchors.num_harmful], anchors.rows[anchors.num_harmful :])
        harmful, harmless = (_thinned([row for row in side if row.template == template]) for side in sides)
        edges = _edges([*harmful, *harmless])
        for fold in range(FOLDS):
            parts = _Parts(_of_fold(harmful, fold), _of_fold(harmless, fold), refusals, edges, rng)
            if parts.harmful and parts.harmless:
                asked = {row.input_ids[: row.spans[0][0]] for row in parts.harmful}
                fitting = (made for made in parts.rows() if longest is None or len(made[0]) <= longest)
                rows += [
                    ComposedRow(TokenizedRow(number, ids, (span,), template), labels, fold, ids[: span[0]] in asked)
                    for number, (ids, span, labels) in enumerate(fitting, start=len(rows))
                ]
    return rows


@dataclass(frozen=True)
class _Parts:
    """The anchors of one fold and template."""

    harmful: Sequence[TokenizedRow]
    harmless: Sequence[TokenizedRow]
    refusals: Refusals
    edges: tuple[int, int]
    """How many tokens all prompts begin with, and how many all end with."""
    rng: random.Random

    def rows(self) -> Iterator[Joined]:
        """Every row."""
        words = [token for row in self.harmless for token in (*self._words(row), *_said(row))]
        for row in self.harmful:
            b, other, under = (self.rng.choice(self.harmless) for _ in range(3))
            harm, question = (_said(row), HARM), (self._words(row), NEITHER)
            yield _joined(row, harm)
            yield _joined(under, harm)
            yield _joined(under, (_said(b), REST), question, harm, (_said(other), REST))
            yield _joined(row, self._refusal(row))
        for row in self.harmless:
            other, under = (self.rng.choice(self.harmless) for _ in range(2))
            said, drawn = (_said(row), REST), self.rng.choices(words, k=self.rng.randint(2, 2 + len(_said(row))))
            yield _joined(row, said)
            yield _joined(under, said)
            yield _joined(under, (drawn, REST))
            yield _joined(under, said, (self._words(other), REST), (_said(other), REST))
            yield _joined(row, self._refusal(row), said)
            yield _joined(self.rng.choice(self.harmful), said)

    def _refusal(self, row: TokenizedRow) -> Segment:
        return self.refusals.of(row, self.rng.randrange(len(self.refusals)))[:-1], REST

    def _words(self, row: TokenizedRow) -> Sequence[int]:
        first, last = self.edges
        return row.input_ids[first : row.spans[0][0] - last]


def _joined(prompt: TokenizedRow, *segments: Segment) -> Joined:
    start, end = prompt.spans[0]
    said = [token for ids, _ in segments for token in ids]
    labels = [label for ids, label in segments for _ in ids]
    ids = (*prompt.input_ids[:start], *said, prompt.input_ids[end - 1])
    return ids, (start, len(ids)), (*labels, NEITHER)


def _said(row: TokenizedRow) -> tuple[int, ...]:
    """The answer without the token that ends it."""
    start, end = row.spans[0]
    return row.input_ids[start : end - 1]


def _thinned(rows: Sequence[TokenizedRow]) -> Sequence[TokenizedRow]:
    return rows[:: max(1, -(-len(rows) // MAX_ANCHORS))]


def _of_fold(rows: Sequence[TokenizedRow], fold: int) -> list[TokenizedRow]:
    """The rows of a fold. All that have one answer are in one: another's answer held out must not be this one."""
    answers = {_said(row): None for row in rows}
    number = {answer: i % FOLDS for i, answer in enumerate(answers)}
    return [row for row in rows if number[_said(row)] == fold]


def _edges(rows: Sequence[TokenizedRow]) -> tuple[int, int]:
    prompts = [row.input_ids[: row.spans[0][0]] for row in rows]
    shortest = min(map(len, prompts))
    first = next((i for i in range(shortest) if len({p[i] for p in prompts}) > 1), shortest)
    last = next((i for i in range(shortest - first) if len({p[-1 - i] for p in prompts}) > 1), shortest - first)
    return first, last
