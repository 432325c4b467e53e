"""Score the provider's anchors with an aligned model."""

from collections.abc import Sequence
from typing import cast

from torch import nn

from ..data.records import Record
from ..models.loading import LoadedModel
from ..screening.anchors import Anchors, make_anchors, require_enough, require_one_answer
from ..training.step import Role, StepContext
from .encoding import encode, make_renderer, render_refusals


def score_anchors(
    aligned: LoadedModel,
    before: LoadedModel | None,
    *,
    anchor_harmful: Sequence[Record],
    anchor_benign: Sequence[Record],
    refusals: Sequence[str],
    batch_size: int = 32,
) -> Anchors:
    """Evidence of labelled rows under the aligned model and the one before it.

    Args:
        aligned: As it will be used.
        before: The model before its alignment; None where that is the adapter switched off.
        anchor_harmful: Rows of the harmful kind, new to the model; one question and one answer each.
        anchor_benign: Harmless ones, likewise.
        refusals: One-line refusals.
        batch_size: Rows of one forward pass.

    Raises:
        DataError: a row has several trained turns, or there are too few.
        ModelError: the two models are the same, or there is none before alignment.
        TrainingError: what is read of a row is not finite.
    """
    check_anchor_records(anchor_harmful, anchor_benign)
    records = {str(Role.ANCHOR_HARMFUL): anchor_harmful, str(Role.ANCHOR_BENIGN): anchor_benign}
    renderer = make_renderer(aligned)
    rows, _ = encode(records, renderer, skip=False)
    context = StepContext(
        cast(nn.Module, aligned.model),
        pad_id=cast(int, aligned.tokenizer.pad_token_id),
        refusals=render_refusals(refusals, renderer, records),
        batch_size=batch_size,
        base=None if before is None else cast(nn.Module, before.model),
    )
    return make_anchors(context, rows[Role.ANCHOR_HARMFUL], rows[Role.ANCHOR_BENIGN])


def check_anchor_records(harmful: Sequence[Record], benign: Sequence[Record]) -> None:
    """What can be told of anchors without a model, and so before an alignment that would end with them.

    Raises:
        DataError: a row has several trained turns, or there are too few of a label.
    """
    require_one_answer(
        (record.where, sum(message.role == "assistant" and message.trained for message in record.messages))
        for record in (*harmful, *benign)
    )
    require_enough(len(harmful), len(benign))
