"""Several completions of the same prompts, with the prompts computed once for all of them.

    [x_1 .. x_{P-1}]            the prompts' forward, which leaves keys and values
    [x_P, y],  [x_P, r],  ...   a forward for each completion, on those keys and values

The gradient of one completion's loss runs back through its own forward and the prompts', and not through that of
another. So losses whose gradients are wanted apart, at the same weights, share the forward of the prompts but not its
backward. x_P goes with the completion because it predicts its first token: what the last layer makes of the other
prompt tokens is then asked for by nobody, and its backward is not made.

Exact up to rounding where a refusal can be scored on kept keys and values (refusals.py), for the same reasons; compared
with separate forwards once, at the start of a run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from ..data.collate import pad
from ..data.records import TokenizedRow
from ..errors import TrainingError
from ..primitives.gradients import Gradients, difference, norm
from .completion import Past, TurnNLL, bare, completion_nll, evaluating, takes_logits_to_keep, tolerance
from .microbatch import MicroBatch


@dataclass(frozen=True, slots=True)
class SharedPrompts:
    """The prompts of a micro-batch, read.

    Attributes:
        past: Their keys and values.
        lengths: How many tokens of each row these are.
    """

    past: Past
    lengths: tuple[int, ...]

    def completion_nll(self, model: nn.Module, micro: MicroBatch, *, pad_id: int) -> TurnNLL:
        """NLL of every trained turn of a micro-batch whose rows begin with the prompts."""
        rest = tuple(_without(row, length) for row, length in zip(micro.rows, self.lengths, strict=True))
        return completion_nll(model, replace(micro, rows=rest), pad_id=pad_id, past=self.past)


def shared_lengths(micros: Sequence[MicroBatch]) -> tuple[int, ...]:
    """How many tokens of each row the micro-batches share: all up to the last one before the first that is trained."""
    lengths = []
    for rows in zip(*(micro.rows for micro in micros), strict=True):
        length = min(row.spans[0][0] for row in rows) - 1
        assert len({row.input_ids[:length] for row in rows}) == 1, "rows of one place have one prompt"
        lengths.append(length)
    return tuple(lengths)


def read_prompts(model: nn.Module, micros: Sequence[MicroBatch], *, pad_id: int) -> SharedPrompts:
    """Read what the rows of several micro-batches have in common, row by row: 1 token or more, with its graph.

    Args:
        model: A causal language model with plain causal attention, bare or with a PEFT adapter.
        micros: Micro-batches of the same prompts in the same order, each with completions of its own.
        pad_id: The token to pad with.
    """
    lengths = shared_lengths(micros)
    prompts = [
        TokenizedRow(row.row_id, row.input_ids[:length], (), row.template)
        for row, length in zip(micros[0].rows, lengths, strict=True)
    ]
    tensors = pad(prompts, pad_id, device=next(model.parameters()).device)
    cache: Any = DynamicCache()
    extra = {"logits_to_keep": 1} if takes_logits_to_keep(model) else {}  # none is looked at
    mask = tensors["attention_mask"]
    model(input_ids=tensors["input_ids"], attention_mask=mask, past_key_values=cache, use_cache=True, **extra)
    return SharedPrompts(Past([(layer.keys, layer.values) for layer in cache.layers], mask), lengths)


def _without(row: TokenizedRow, length: int) -> TokenizedRow:
    spans = tuple((start - length, end - length) for start, end in row.spans)
    return TokenizedRow(row.row_id, row.input_ids[length:], spans, row.template)


def check_shared_prompts(
    model: nn.Module, parameters: Sequence[nn.Parameter], micros: Sequence[MicroBatch], *, pad_id: int
) -> None:
    """Compare losses and gradients on shared prompts with those of separate forwards.

    Raises:
        TrainingError: they differ by more than rounding; the message has both numbers.
    """

    def gradient(nll: TurnNLL) -> tuple[float, Gradients]:
        loss = nll.row_total.sum() / nll.row_tokens.sum()
        return float(loss.detach()), list(
            torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
        )

    allowed = tolerance(model)
    with evaluating(model), torch.enable_grad():
        prompts = read_prompts(model, micros, pad_id=pad_id)
        for micro in micros:
            a, ours = gradient(prompts.completion_nll(model, micro, pad_id=pad_id))
            b, plain = gradient(completion_nll(model, micro, pad_id=pad_id))
            # A gradient that stops at the kept keys and values is off by a large part of its norm.
            off, norm_of_plain = float(norm(difference(ours, plain))), float(norm(plain))
            if not (abs(a - b) <= allowed * max(1.0, abs(b)) and off <= 10 * allowed * norm_of_plain):
                raise TrainingError(
                    f"self-check: on prompts that are computed once a completion costs {a:.6f} nats per token, in a "
                    f"forward of its own {b:.6f}; the gradients, of norm {norm_of_plain:.3g}, are {off:.3g} apart. "
                    f"{type(bare(model)).__name__} does not go on from kept keys and values as transformers' own "
                    "models do. Fix it there, or report it."
                )
