"""Per-row evidence that the aligned model considers a prompt or an answer harmful. High means harm.

    ratio            NLL(y|x) - NLL(r|x)                       Antibody's score with its sign turned
    shift            NLL_0(r|x) - NLL(r|x)                     how far alignment raised the likelihood of refusing
    gap              shift - (NLL_0(y|x) - NLL(y|x))           ... minus how far it raised that of the answer
    refusal-feature  <h_l(x), u_l>                             the last prompt token's hidden state, at one layer,
                                                               along the harmful minus the harmless mean
    feature-shift    sum_l <g_l(x) - g0_l(x), v_l> - offset    what alignment changed of that state (g = h / rms(h)),
                                                               along what separates harmful from harmless rows: 0 at the
                                                               harmless mean, 1 at the harmful one (anchors.py)

NLL is in nats per token, averaged over k generic refusals r; the index 0 marks the model before its alignment. x is
all that precedes a trained answer y; a row with several answers counts by its worst one, in each measure.

``ratio`` mixes whether the model wants to refuse x with whether it knows y, and ``refusal-feature`` mixes what
alignment made of x with what x always looked like. The two shifts measure only what alignment *changed*: novelty,
length and format are the same before and after, and cancel.

Sources: ``ratio``: Antibody (2603.00498), Sec. 4.2. ``refusal-feature``: the refusal direction as a teacher of which
prompts are harmful (2506.07356). ``shift`` is the log-ratio of policy and reference for a refusal, and ``gap`` DPO's
implicit reward (2305.18290, Sec. 4) of refusing over answering, with alignment as what is rewarded. Both, and
``feature-shift``, are ours in this use.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor


class EvidenceKind(StrEnum):
    """A kind of evidence; the table at the head of this file defines each."""

    FEATURE_SHIFT = "feature-shift"
    SHIFT = "shift"
    GAP = "gap"
    RATIO = "ratio"
    REFUSAL_FEATURE = "refusal-feature"

    @property
    def needs_base(self) -> bool:
        """Whether the measure compares with the model before its alignment."""
        return self in (EvidenceKind.FEATURE_SHIFT, EvidenceKind.SHIFT, EvidenceKind.GAP)

    @property
    def needs_probe(self) -> bool:
        """Whether the measure reads hidden states."""
        return self in (EvidenceKind.FEATURE_SHIFT, EvidenceKind.REFUSAL_FEATURE)

    @property
    def needs_answers(self) -> bool:
        """Whether the row's own answer counts, and not its prompt alone."""
        return self in (EvidenceKind.GAP, EvidenceKind.RATIO)


@dataclass(frozen=True)
class Evidence:
    """The findings of one pass over rows: numbers per *answer*, and the row that each answer belongs to.

    Attributes:
        num_rows: How many rows there are.
        row: [answers], int64: the row's position.
        readings: [answers], float32, by (what, before alignment or not). "refusal" and "completion" are nats per token,
            "shift" and "state" projections on the probe's directions.
        nearest: [answers], int64: the number of the likeliest refusal scored; -1 where none was scored.
        offset: The probe's offset.
    """

    num_rows: int
    row: Tensor
    readings: dict[tuple[str, bool], Tensor]
    nearest: Tensor
    offset: float = 0.0
    distance: Tensor | None = None
    """Distance of each answer's prompt from the anchors, [answers], float32; None where it was not read."""

    def has(self, measure: EvidenceKind) -> bool:
        """Whether the pass read what the measure is made of."""
        return all(key in self.readings for key in PARTS[measure])

    def of(self, measure: EvidenceKind) -> Tensor:
        """Evidence per row, [num_rows], float32: the highest of a row's answers. High means harm."""
        worst = torch.full((self.num_rows,), -torch.inf)
        return worst.scatter_reduce(0, self.row, self.of_answers(measure), "amax")

    def of_answers(self, measure: EvidenceKind) -> Tensor:
        """Evidence per answer, [answers], float32."""
        values = _FORMULAS[measure](*(self.readings[key] for key in PARTS[measure]))
        return values - self.offset if measure is EvidenceKind.FEATURE_SHIFT else values

    def _counts(self, measure: EvidenceKind) -> Tensor:
        """Whether an answer is one that its row's evidence is of, [answers], bool."""
        return self.of_answers(measure) == self.of(measure)[self.row]

    def first_turn(self, measure: EvidenceKind, marked: Tensor) -> Tensor:
        """The first trained turn of each row that is marked, or that its evidence is of: [num_rows], int64.

        Args:
            measure: The evidence.
            marked: [answers], bool.
        """
        first = torch.searchsorted(self.row, torch.arange(self.num_rows))  # a row's answers follow one another
        turn, counts = torch.arange(len(self.row)) - first[self.row], marked | self._counts(measure)
        found = torch.full((self.num_rows,), len(self.row))
        return found.scatter_reduce(0, self.row[counts], turn[counts], "amin")

    def distances(self) -> Tensor:
        """Distance of each row from the anchors, at the answer that its feature-shift is of: [num_rows], float32."""
        assert self.distance is not None, "the pass was not given the shape of the anchors"
        counts, nearest = self._counts(EvidenceKind.FEATURE_SHIFT), torch.full((self.num_rows,), torch.inf)
        return nearest.scatter_reduce(0, self.row[counts], self.distance[counts], "amin")

    def nearest_refusal(self) -> Tensor:
        """The likeliest refusal to each row's first answer: [num_rows], int64."""
        first = torch.full((self.num_rows,), -1, dtype=torch.int64)
        first[self.row.flip(0)] = self.nearest.flip(0)
        return first


BEFORE, NOW = True, False
PARTS: dict[EvidenceKind, tuple[tuple[str, bool], ...]] = {
    EvidenceKind.RATIO: (("completion", NOW), ("refusal", NOW)),
    EvidenceKind.SHIFT: (("refusal", BEFORE), ("refusal", NOW)),
    EvidenceKind.GAP: (("refusal", BEFORE), ("refusal", NOW), ("completion", BEFORE), ("completion", NOW)),
    EvidenceKind.REFUSAL_FEATURE: (("state", NOW),),
    EvidenceKind.FEATURE_SHIFT: (("shift", NOW), ("shift", BEFORE)),
}
_FORMULAS: dict[EvidenceKind, Callable[..., Tensor]] = {
    EvidenceKind.RATIO: lambda y, r: y - r,
    EvidenceKind.SHIFT: lambda r0, r: r0 - r,
    EvidenceKind.GAP: lambda r0, r, y0, y: (r0 - r) - (y0 - y),
    EvidenceKind.REFUSAL_FEATURE: lambda h: h,
    EvidenceKind.FEATURE_SHIFT: lambda h, h0: h - h0,
}
