"""The provider's screening, as an attacker sees it who is shown the evidence on every row."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from torch import nn

from ..data.encode import Renderer, encode_rows
from ..errors import ModelError
from ..lab.rows import record
from ..likelihood.reader import ModelReader
from ..models.layout import context_length
from ..models.loading import load_model
from ..models.names import resolve
from ..screening.anchors import read_anchors
from ..screening.evidence import EvidenceKind
from ..screening.reading import collect
from .asking import Row
from .attack import Suspicion


def screening_of(model: str) -> Suspicion:
    """What the screening of an aligned model makes of rows: the shift of its features.

    Raises:
        ModelError: the model brings no anchors, or its base is not known.
    """
    aligned = load_model(model)
    anchors = read_anchors(Path(resolve(model)))
    if anchors is None or aligned.base is None:
        lacks = "no anchors" if anchors is None else "no base"
        raise ModelError(
            f"{model}: {lacks}, so that its screening cannot be attacked. Name an aligned model with both."
        )
    renderer = Renderer(aligned.tokenizer, max_length=context_length(aligned.model) or 2**31)
    reader = ModelReader(
        cast(nn.Module, aligned.model),
        pad_id=cast(int, aligned.tokenizer.pad_token_id),
        batch_size=64,
        base=None if aligned.adapter_off_is_base else cast(nn.Module, load_model(aligned.base).model),
    )

    def suspicion(rows: Sequence[Row]) -> Sequence[float]:
        records = [record(row, i, "the attacker's rows") for i, row in enumerate(rows)]
        encoded = encode_rows(records, renderer, skip_too_long=False).rows
        measure = EvidenceKind.FEATURE_SHIFT
        return cast("list[float]", collect(reader, encoded, [measure], probe=anchors.probe).of(measure).tolist())

    return suspicion
