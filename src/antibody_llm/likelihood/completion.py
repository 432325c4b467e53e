"""Likelihoods of the completions of a micro-batch.

The model computes logits at completion positions alone, if its forward takes ``logits_to_keep``, and may keep the keys
and values of the prompt for the refusals (refusals.py). The numbers are compared with those of the plain forward once
at the start of a run (``check_completion_nll``).
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from ..data.collate import pad
from ..errors import DataError, TrainingError
from ..primitives.likelihood import IGNORED, token_nll
from .microbatch import MicroBatch


@dataclass(frozen=True, slots=True)
class TurnNLL:
    """Negative log-likelihood of each trained completion: [B, K] for B rows of at most K trained turns.

    Attributes:
        total: float32, nats, summed over the completion's tokens, EOS included; 0 where the row has no such turn.
        num_tokens: float32; 0 where the row has no such turn.
    """

    total: Tensor
    num_tokens: Tensor

    @property
    def row_total(self) -> Tensor:
        """[B], nats: the sum over all trained turns of the row."""
        return self.total.sum(dim=1)

    @property
    def row_tokens(self) -> Tensor:
        """[B]: the number of trained tokens of the row, N_i."""
        return self.num_tokens.sum(dim=1)

    @property
    def mean(self) -> Tensor:
        """[B, K], nats per token: the mean of each turn; 0 where the row has no such turn."""
        return self.total / self.num_tokens.clamp(min=1)

    @property
    def present(self) -> Tensor:
        """[B, K], bool: which turns exist."""
        return self.num_tokens > 0


@dataclass(frozen=True, slots=True)
class CompletionLogits:
    """What a model predicts where the completions of a micro-batch are.

    Attributes:
        logits: [B, W, V], with graph: W positions, from the first completion token of the micro-batch to the last.
        targets: [B, W]: the token that each position predicts; -100 where none is trained.
        turns: [B, W]: which of the row's trained turns a target belongs to, 0-based; -1 where none is trained.
        first: The token whose prediction comes first in each row.
    """

    logits: Tensor
    targets: Tensor
    turns: Tensor
    first: int

    @property
    def trained(self) -> Tensor:
        """[B, W], bool: where a token is trained. Row by row, it runs through the tokens of the rows' spans."""
        return self.targets != IGNORED

    @property
    def nll(self) -> Tensor:
        """[B, W], float32, nats: the NLL of each target; 0 where none is trained."""
        return token_nll(self.logits, self.targets)

    def by_turn(self, num_turns: int) -> TurnNLL:
        """The NLL summed over each of the rows' trained turns."""
        nll = self.nll
        members = [self.turns == k for k in range(num_turns)]
        if num_turns == 1:
            total = nll.sum(dim=1, keepdim=True)  # zero off the completion already
        else:
            total = torch.stack([(nll * member).sum(dim=1) for member in members], dim=1)
        num_tokens = torch.stack([member.sum(dim=1) for member in members], dim=1)
        return TurnNLL(total, num_tokens.to(total.dtype))


@dataclass(frozen=True, slots=True)
class Past:
    """What the rows of a micro-batch go on from: keys and values of earlier tokens, with their graph.

    Attributes:
        layers: Keys and values of each layer, [B, heads, P, D] both.
        mask: [B, P], int64, 0 at padding, which is on the right.
    """

    layers: Sequence[tuple[Tensor, Tensor]]
    mask: Tensor

    def inputs(self, mask: Tensor) -> dict[str, object]:
        """What a forward takes besides its tokens; the keys and values here stay as they are.

        Args:
            mask: [B, W], 0 at padding of the tokens that go on.
        """
        cache = DynamicCache()
        for number, (keys, values) in enumerate(self.layers):
            cache.update(keys, values, number)
        return {
            "attention_mask": torch.cat([self.mask, mask], dim=1),
            "position_ids": self.mask.sum(dim=1, keepdim=True) + torch.arange(mask.shape[1], device=mask.device),
            "past_key_values": cache,
            "use_cache": True,
        }


def completion_logits(
    model: nn.Module,
    micro: MicroBatch,
    *,
    pad_id: int,
    cache: Cache | None = None,
    past: Past | None = None,
    plain: bool = False,
) -> CompletionLogits:
    """The logits at the trained turns of a micro-batch; arguments and errors are those of ``completion_nll``."""
    tensors = pad(micro.rows, pad_id, device=next(model.parameters()).device)
    labels, turns = tensors["labels"], tensors["turns"]
    for row in micro.rows:  # not asked of the tensors, which would wait for the GPU
        if not any(end > start for start, end in row.spans):
            raise DataError(f"row {row.row_id} has no completion token to train on; its weight would be 0/0.")
    ids, mask = tensors["input_ids"], tensors["attention_mask"]
    # Position t predicts token t + 1: `first` predicts the first completion token of the micro-batch.
    first, last = 0, labels.shape[1] - 1
    extra: dict[str, object] = {"attention_mask": mask, "use_cache": cache is not None}
    if cache is not None:
        extra["past_key_values"] = cache
    if past is not None:
        ids = ids[:, :last]  # the last token predicts nothing
        extra = past.inputs(mask[:, :last])
    if not plain and takes_logits_to_keep(model):
        first = min(row.spans[0][0] for row in micro.rows) - 1
        last = max(row.spans[-1][1] for row in micro.rows) - 1
        extra["logits_to_keep"] = torch.arange(first, last, device=labels.device)
    logits = model(input_ids=ids, **extra).logits
    predicted = slice(first + 1, last + 1)
    return CompletionLogits(logits[:, : last - first], labels[:, predicted], turns[:, predicted], first)


def completion_nll(
    model: nn.Module,
    micro: MicroBatch,
    *,
    pad_id: int,
    cache: Cache | None = None,
    past: Past | None = None,
    plain: bool = False,
) -> TurnNLL:
    """NLL of every trained turn of a micro-batch, with its graph.

    Args:
        model: A causal language model, bare or with a PEFT adapter.
        micro: The rows.
        pad_id: The token to pad with; padding is masked and has no label.
        cache: An empty cache, to be filled with the keys and values of the whole rows.
        past: What the rows go on from, if it has been read already.
        plain: Compute logits at every position, as ``check_completion_nll`` does to compare.

    Raises:
        DataError: a row has no completion token.
    """
    found = completion_logits(model, micro, pad_id=pad_id, cache=cache, past=past, plain=plain)
    return found.by_turn(max(len(row.spans) for row in micro.rows))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode inside, without dropout, and restore its mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def bare(model: nn.Module) -> nn.Module:
    """The transformers model under a PEFT adapter, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def takes_logits_to_keep(model: nn.Module) -> bool:
    """Whether the model's forward can compute the logits of some positions alone."""
    return "logits_to_keep" in inspect.signature(type(bare(model)).forward).parameters


TOLERANCE = 1e-4
"""Largest relative difference between two ways of computing one likelihood in float32 that rounding explains."""


def tolerance(model: nn.Module) -> float:
    """``TOLERANCE`` in float32; in half precision rounding alone gives about two digits."""
    autocast = torch.is_autocast_enabled() or hasattr(model, "_original_forward")
    half = autocast or any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
    return 3e-2 if half else TOLERANCE


def check_completion_nll(model: nn.Module, micro: MicroBatch, *, pad_id: int) -> None:
    """Compare logits at completions alone with the plain forward on one micro-batch.

    Raises:
        TrainingError: they differ by more than rounding; the message has both numbers.
    """
    if not takes_logits_to_keep(model):
        return
    with evaluating(model), torch.no_grad():
        kept = completion_nll(model, micro, pad_id=pad_id).mean
        plain = completion_nll(model, micro, pad_id=pad_id, plain=True).mean
    worst = int((kept - plain).abs().argmax())
    a, b = float(kept.flatten()[worst]), float(plain.flatten()[worst])
    if not abs(a - b) <= tolerance(model) * max(1.0, abs(b)):
        raise TrainingError(
            f"self-check: with logits at the completions alone a completion costs {a:.6f} nats per token, with all "
            f"of them {b:.6f}. The forward of {type(bare(model)).__name__} does not understand logits_to_keep as "
            "transformers' own models do. Fix it there, or remove that argument."
        )
