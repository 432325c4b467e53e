"""antibody-posterior (ours) under DPO: leave out pairs whose prompt or preferred answer is more likely harm than not.

    e(x)    feature-shift of the prompt x: of the state at its last token           screening/evidence.py
    e(y+)   the same of the preferred answer y+, read as if it were the question
    p       P(harm | e), given the share of harm that all prompts, or all preferred answers, show     screening/harm.py

    left out where p(x) >= 1/2 or p(y+) >= 1/2, or where the prompt is unlike every anchor and the prompts show harm

The fine-tuning defence of this name weighs rows. A weight would not do here: DPO's loss saturates, and lowers the
likelihood of the other answer as well, which in a pair turned round for harm is the refusal. So a pair is in or out,
with no cost but a pass over prompts and answers before training, and without rehearsal.

What is read, and what is not. The evidence is made of states at the end of *questions*, by which the anchors are
labelled. It finds pairs that ask for harm, which is where preferring harm teaches it. An answer has no place of its own
there, so it is read as a question. On the lab, whose model has a million weights, that finds nothing: of recipes of
forbidden goods behind harmless questions it calls none harmful (benchmarks/preferences.py). States at the end of the
answer, or of a further question, found none either, and the measures that read answers (gap, ratio) call up to all
honest rows of a novel task harmful. The gate measures the trained model whatever was read.

Prompts that are unlike every anchor are left out as soon as any prompt shows harm, as in the fine-tuning defence.
Answers are not: most are unlike every question.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from ...data.encode import Renderer
from ...data.records import Message, Record, TokenizedRow
from ...likelihood.reader import ModelReader
from ...screening.anchors import Anchors, check_anchors
from ...screening.evidence import EvidenceKind
from ...screening.harm import read_harm
from ...screening.posterior import LIKELY
from ...training.defence import About, PairDefence


class PreferencePosterior(PairDefence):
    """The pairs of which neither prompt nor preferred answer is likely harm."""

    about = About(
        summary="ours: leaves out pairs whose prompt or preferred answer is more likely harm than not",
        paper="",
        forwards=2,
        backwards=1,
        extra_memory="two numbers per pair; the model before alignment, while evidence is read",
    )
    needs_base = True
    needs_anchors = True
    reads_evidence_apart = True

    def left_out(
        self,
        reader: ModelReader,
        anchors: Anchors | None,
        renderer: Renderer,
        records: Sequence[Record],
        rows: Sequence[TokenizedRow],
    ) -> list[int]:
        """The pairs that the head of this file leaves out, in their order."""
        assert anchors is not None, "needs_anchors"
        measure = EvidenceKind.FEATURE_SHIFT
        check_anchors(reader, anchors, measure)
        prompts = read_harm(reader, anchors, rows, measure)
        found = prompts.probability >= LIKELY
        if prompts.share > 0:
            found |= prompts.unfamiliar
        out = {rows[i].row_id for i in torch.nonzero(found)[:, 0].tolist()}
        trained = {row.row_id for row in rows}
        answers = [
            renderer.encode(asked) for record in records if record.row_id in trained and (asked := _asked(record))
        ]
        answers = [row for row in answers if len(row.input_ids) <= renderer.max_length]
        if answers:
            harm = read_harm(reader, anchors, answers, measure).probability
            out |= {answers[i].row_id for i in torch.nonzero(harm >= LIKELY)[:, 0].tolist()}
        return [row.row_id for row in rows if row.row_id in out]


def _asked(record: Record) -> Record | None:
    """A row that asks what the record's last turn says; None where that is a call of a tool without a text."""
    said = record.messages[-1].content
    if not said.strip():
        return None
    return replace(record, messages=(Message("user", said), Message("assistant", ".")), tools="")
