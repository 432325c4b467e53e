"""The attacker's own copy of the model: what it makes of rows, states and gradients."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.encode import Renderer
from ..data.records import Message, Record, Template, TokenizedRow
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
        """By how much more rows are like the mean harmful one than like the mean harmless one: -2 to 2.

        Args:
            rows: To be rated.
            harmful: At least one.
            harmless: At least one.
            by: ``representation`` or ``gradient``.
        """
        feature = self._state if by == "representation" else self._gradient
        means = [torch.stack([feature(row) for row in of]).mean(dim=0) for of in (harmful, harmless)]
        features = [feature(row) for row in rows]
        return [float(F.cosine_similarity(f, means[0], 0) - F.cosine_similarity(f, means[1], 0)) for f in features]

    def self_influence(self, rows: Sequence[Row]) -> list[float]:
        """log(1 + |g|^2) + log(1 + answer tokens)."""
        found = []
        for row in rows:
            squared = self._gradient(row, tokens=None).square().sum()
            start, end = self._encoded(row).spans[-1]
            found.append(float(torch.log1p(squared) + torch.log1p(torch.tensor(float(end - start)))))
        return found

    def _encoded(self, row: Row) -> TokenizedRow:
        messages = tuple(Message(message["role"], message["content"]) for message in row["messages"])
        return self._renderer.encode(Record(0, messages, Template.CHAT, source="attack", line=1))

    def _state(self, row: Row) -> Tensor:
        encoded = self._encoded(row)
        ids = torch.tensor([encoded.input_ids[: encoded.spans[-1][0]]], device=self._model.device)
        with torch.no_grad():
            found: Tensor = self._model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        return found[0, -1].float()

    def _gradient(self, row: Row, tokens: int | None = FIRST_TOKENS) -> Tensor:
        """Gradient of the mean NLL of the last answer's first tokens, in the last layer's weights."""
        encoded = self._encoded(row)
        start, end = encoded.spans[-1]
        end = end if tokens is None else min(end, start + tokens)
        ids = torch.tensor([encoded.input_ids[:end]], device=self._model.device)
        with torch.enable_grad():
            logits = self._model(input_ids=ids).logits[0, start - 1 : -1].float()
            loss = F.cross_entropy(logits, ids[0, start:])
            return torch.cat([part.flatten().float() for part in torch.autograd.grad(loss, self._last)])
