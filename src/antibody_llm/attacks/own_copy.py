"""The attacker's own copy of the model: what it makes of rows, states and gradients."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.encode import Renderer
from ..data.records import Record, TokenizedRow
from ..data.rows import row_content
from ..models.layout import context_length, decoder_layers
from ..models.loading import load_model
from .asking import Row

FIRST_TOKENS = 10
"""Tokens of an answer whose gradient is compared. Source: 2404.01099, Sec. 3.1."""


class OwnCopy:
    """A model in the attacker's hands.

    Args:
        model: A name as ``models.loading.load_model`` takes it.
    """

    def __init__(self, model: str) -> None:
        loaded = load_model(model)
        self._model: Any = loaded.model.eval()
        self._renderer = Renderer(loaded.tokenizer, max_length=context_length(loaded.model) or 2**31)
        self._last = list(decoder_layers(self._model)[-1].parameters())

    def likeness(self, rows: Sequence[Row], harmful: Sequence[Row], harmless: Sequence[Row], *, by: str) -> list[float]:
        """How much more rows are like the mean harmful one than like the mean harmless one: -2 to 2.

        Minus infinity of a row that does not fit the model.

        Args:
            rows: To be rated.
            harmful: At least one.
            harmless: At least one.
            by: ``representation`` or ``gradient``.
        """
        feature = self._state if by == "representation" else self._gradient
        bad, good = (
            torch.stack([feature(row) for row in map(self._encoded, of) if self._fits(row)]).mean(dim=0)
            for of in (harmful, harmless)
        )

        def rated(row: TokenizedRow) -> float:
            found = feature(row)
            return float(F.cosine_similarity(found, bad, 0) - F.cosine_similarity(found, good, 0))

        return [rated(row) if self._fits(row) else -math.inf for row in map(self._encoded, rows)]

    def self_influence(self, rows: Sequence[Row]) -> list[float]:
        """log(1 + |g|^2) + log(1 + answer tokens) of each row; minus infinity of one that does not fit the model."""

        def rated(row: TokenizedRow) -> float:
            squared = float(self._gradient(row, tokens=None).square().sum())
            start, end = row.spans[-1]
            return math.log1p(squared) + math.log1p(end - start)

        return [rated(row) if self._fits(row) else -math.inf for row in map(self._encoded, rows)]

    def _encoded(self, row: Row) -> TokenizedRow:
        content = row_content(row, form="chat")
        record = Record(0, content.messages, content.template, source="attack", line=1, tools=content.tools)
        return self._renderer.encode(record)

    def _fits(self, row: TokenizedRow) -> bool:
        return len(row.input_ids) <= self._renderer.max_length

    def _state(self, row: TokenizedRow) -> Tensor:
        ids = torch.tensor([row.input_ids[: row.spans[-1][0]]], device=self._model.device)
        with torch.no_grad():
            found: Tensor = self._model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        return found[0, -1].float()

    def _gradient(self, row: TokenizedRow, tokens: int | None = FIRST_TOKENS) -> Tensor:
        """Gradient of the mean NLL of the last answer's first tokens, in the last layer's weights."""
        start, end = row.spans[-1]
        end = end if tokens is None else min(end, start + tokens)
        ids = torch.tensor([row.input_ids[:end]], device=self._model.device)
        with torch.enable_grad():
            logits = self._model(input_ids=ids).logits[0, start - 1 : -1].float()
            loss = F.cross_entropy(logits, ids[0, start:])
            return torch.cat([part.flatten().float() for part in torch.autograd.grad(loss, self._last)])
