"""P(harm) of the rows of an upload, given how much harm the upload as a whole shows.

    Lam_i   log p(e_i | harm) - log p(e_i | benign), by the anchors             primitives/mixture.py
    pi      the harmful share that is most likely given every Lam_i
    k_i     1, or less where Lam_i < 0 and the upload has more rows at e_i than the anchors lead to expect
    p_i     k_i pi exp(Lam_i) / (pi exp(Lam_i) + 1 - pi)
    share   pi sum_i p_i / sum_i (p_i / k_i)        where the prior says nothing: the mean of p_i

A task that reads a third of the way to harm adds a little to pi with every row of it: on a real model 7 of 100 in an
upload of which 20 are harmful. So the share is taken when its rows have been found to be a crowd.

What defences decide by. ``posterior.py`` judges an upload for a reader: with a prior that no share of 0 or 1 survives,
a test and intervals.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.records import TokenizedRow
from ..likelihood.reader import ModelReader
from ..primitives.mixture import harm_posterior, harmful_share, unexpected
from .anchors import Anchors
from .evidence import EvidenceKind
from .familiarity import read_familiarity
from .posterior import LIKELY
from .reading import collect


@dataclass(frozen=True)
class RowHarm:
    """The harm that an upload shows.

    Attributes:
        share: The harmful share, 0 to 1.
        probability: [rows], p_i, those of unfamiliar rows at face value.
        evidence: [rows], e_i.
        unfamiliar: [rows], bool: unlike every anchor (familiarity.py); False where the evidence cannot say.
        turn: [rows], int64: the first trained turn that is more likely harm than not, or that the evidence is of.
    """

    share: float
    probability: Tensor
    evidence: Tensor
    unfamiliar: Tensor
    turn: Tensor


def read_harm(
    reader: ModelReader,
    anchors: Anchors,
    rows: Sequence[TokenizedRow],
    measure: EvidenceKind,
    *,
    prior: tuple[float, float] = (1.0, 1.0),
) -> RowHarm:
    """Read the evidence of an upload's rows, and what it says of each.

    Args:
        reader: The aligned model, the one before it, refusals if the measure scores some.
        anchors: The labelled rows stored with the model.
        rows: The upload.
        measure: The evidence.
        prior: Beta(a, b) on the harmful share.
    """
    ground = read_familiarity(reader, anchors) if measure is EvidenceKind.FEATURE_SHIFT else None
    found = collect(
        reader,
        rows,
        [measure],
        probe=anchors.probe,
        # As many as the anchors were scored against: a mean of fewer has a wider spread than theirs.
        num_refusals=anchors.num_refusals,
        shape=None if ground is None else ground.shape,
    )
    evidence = found.of(measure)
    rule = anchors.log_ratio(measure)
    ratio = rule(evidence)
    a, b = prior
    share = harmful_share(ratio, alpha=a, beta=b)
    probability = harm_posterior(ratio, share)
    likely = harm_posterior(rule(found.of_answers(measure)), share) >= LIKELY
    if 0 < share < 1:
        crowded = unexpected(evidence, share, rule, *anchors.scores(measure))
        share *= float((probability * crowded).sum() / probability.sum())
        probability = probability * crowded
    unfamiliar = torch.zeros(len(rows), dtype=torch.bool)
    if ground is not None:
        unfamiliar = ground.unfamiliar(evidence, found.distances())
    turn = found.first_turn(measure, likely)
    return RowHarm(share, probability, evidence, unfamiliar, turn)
