"""Score the provider's anchors with an aligned model."""

from collections.abc import Sequence
from typing import cast

from torch import nn

from ..data.records import Record
from ..models.loading import LoadedModel
from ..screening.anchors import Anchors, make_anchors
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
        anchor_harmful: Rows of the harmful kind, new to the model.
        anchor_benign: Harmless ones.
        refusals: One-line refusals.
        batch_size: Rows of one forward pass.
    """
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
