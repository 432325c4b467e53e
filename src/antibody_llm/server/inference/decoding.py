"""Rows that are decoded together, each with its own temperature, length, stops and listener.

``generate`` of transformers does the decoding; what differs by row hangs on the two hooks that it has for it. A draw is

    argmax_v  logits_v / T + G_v,      G_v = -log(-log u_v),  u_v uniform on (0, 1)                     (Gumbel-max)

over the likeliest tokens that have the share ``top_p`` together, and the u are the row's own: neither the rows beside
it nor their order change what a seed gives.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase, StoppingCriteria
from transformers import StoppingCriteriaList as CriteriaList

from ...evaluation.generation import end_token_ids, left_padded, plain_greedy
from ...models.deployment import Deployment
from ...models.loading import LoadedModel
from .requests import Generation


class Row:
    """One completion in the making.

    Args:
        prompt: Token ids.
        request: What was asked for.
        max_tokens: Most tokens that the completion may have.
        seed: Seed of its draws.
        listen: Called with every further piece of text; returns whether somebody still waits for it.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        request: Generation,
        *,
        max_tokens: int,
        seed: int,
        listen: Callable[[str], bool] = lambda piece: True,
    ) -> None:
        self.prompt, self.request, self.max_tokens, self.listen = prompt, request, max_tokens, listen
        self.generator = torch.Generator().manual_seed(seed % 2**63)
        self.ids: list[int] = []
        self.text = ""
        self.finish: str | None = None
        """``stop`` or ``length`` once it has ended; ``cancelled`` where nobody waits any more."""

    @property
    def num_tokens(self) -> int:
        """Tokens generated, one that ends the turn included."""
        return len(self.ids)


class Reader:
    """Turns a row's tokens into the text that its client sees.

    Args:
        tokenizer: The model's.
        deployment: What of a completion the client must not see.
        ends: Tokens at which a completion ends.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, deployment: Deployment, ends: Sequence[int]) -> None:
        self.tokenizer, self.deployment, self.ends = tokenizer, deployment, frozenset(ends)

    def take(self, row: Row, token: int) -> None:
        """Add a token to the row, and end the row where it has to end."""
        row.ids.append(token)
        if token in self.ends:
            row.finish = "stop"
        elif len(row.ids) >= row.max_tokens:
            row.finish = "length"
        if row.finish or row.request.stream or row.request.stop:
            self._show(row)

    def _show(self, row: Row) -> None:
        text = self._visible(row, whole=row.finish is not None)
        cuts = [at for stop in row.request.stop if (at := text.find(stop)) >= 0]
        if cuts:
            text, row.finish = text[: min(cuts)], "stop"
        elif row.finish is None:
            text = text[: len(text) - _begun(text, row.request.stop)]
        # What was shown stays, though a tokenizer may read a token otherwise once the next one is there.
        if (row.finish is not None and not row.request.stream) or text.startswith(row.text):
            piece, row.text = text[len(row.text) :], text
            if piece and row.request.stream and not row.listen(piece):
                row.finish = "cancelled"

    def _visible(self, row: Row, *, whole: bool) -> str:
        """The text so far; of a row that goes on without what a further token could still change."""
        ids = [token for token in row.ids if token not in self.ends]
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)).lstrip()
        prefix = self.deployment.completion_prefix
        if prefix and not whole and len(text) <= len(prefix) and prefix.startswith(text):
            return ""
        text = self.deployment.completion(text)
        return text.rstrip() if whole else text.rstrip("\ufffd").rstrip()


def decode(loaded: LoadedModel, rows: Sequence[Row], reader: Reader) -> None:
    """Generate the completions of all rows; each leaves with its ``text`` and ``finish``."""
    tokenizer = loaded.tokenizer
    model: Any = loaded.model
    ends = sorted(reader.ends)
    config = plain_greedy(ends, pad_id=int(tokenizer.pad_token_id), max_new_tokens=max(r.max_tokens for r in rows))
    input_ids, attention_mask = left_padded([row.prompt for row in rows], int(tokenizer.pad_token_id))
    device = next(model.parameters()).device
    with torch.no_grad():
        model.generate(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            generation_config=config,
            logits_processor=LogitsProcessorList([_Draws(rows)]),
            stopping_criteria=CriteriaList([_Rows(rows, reader)]),
        )


def row_ends(loaded: LoadedModel, stop_ids: Sequence[int]) -> list[int]:
    """Every token at which a completion of this model ends."""
    return end_token_ids(loaded.model, loaded.tokenizer, stop_ids)  # type: ignore[arg-type]


class _Draws(LogitsProcessor):
    """Adds each row's noise, so that the largest logit is its draw."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``scores``: [B, V] logits of the next token."""
        drawn = [i for i, row in enumerate(self.rows) if row.request.temperature > 0 and row.finish is None]
        if not drawn:
            return scores
        scores = scores.float().clone()
        for i in drawn:
            row = self.rows[i]
            logits = scores[i] / row.request.temperature
            if row.request.top_p < 1:
                logits = _nucleus(logits, row.request.top_p)
            # On the CPU and in double precision: the same draw on every device, and no u of 0.
            uniform = torch.rand(logits.shape[-1], generator=row.generator, dtype=torch.float64).clamp(min=1e-300)
            scores[i] = logits + (-torch.log(-torch.log(uniform))).to(logits)
        return scores


class _Rows(StoppingCriteria):
    """Hands each row its new token, and says which rows are done."""

    def __init__(self, rows: Sequence[Row], reader: Reader) -> None:
        self.rows, self.reader = rows, reader

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        """``input_ids``: [B, T], the new tokens in the last column."""
        for row, token in zip(self.rows, input_ids[:, -1].tolist(), strict=True):
            if row.finish is None:
                self.reader.take(row, token)
        return torch.tensor([row.finish is not None for row in self.rows], device=input_ids.device)


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """[V] logits with everything set to -inf but the likeliest tokens that reach ``top_p`` together."""
    ordered, order = logits.sort(descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    ordered = ordered.masked_fill((before >= top_p) & (before > 0), float("-inf"))
    return torch.empty_like(logits).scatter_(-1, order, ordered)


def _begun(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of a text that could be the beginning of a stop."""
    longest = 0
    for stop in stops:
        for num in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:num]):
                longest = num
                break
    return longest
