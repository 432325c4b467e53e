"""Likelihoods of the completions of a micro-batch, under the model being trained.

Two ways to the same numbers. ``kept`` asks the model for the logits at completion positions only and may keep the keys
and values of the prompt for the refusals (refusals.py). ``fused`` uses TRL's fused head, which never builds the logits:
slower on a CPU, smaller on a GPU with a large vocabulary. Each is compared with the plain forward once at the start of
a run (``check_head``).
"""

import inspect
from dataclasses import dataclass
from enum import StrEnum

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import Cache

from ..data.collate import pad
from ..errors import DataError, TrainingError
from ..primitives.likelihood import IGNORED, token_nll
from .batches import MicroBatch


class Head(StrEnum):
    """How log-likelihoods are read off the model."""

    KEPT = "kept"
    FUSED = "fused"
    FULL = "full"
    """All logits of all positions: what the other two are checked against."""


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
        """[B], nats: over all trained turns of the row."""
        return self.total.sum(dim=1)

    @property
    def row_tokens(self) -> Tensor:
        """[B]: trained tokens of the row, N_i."""
        return self.num_tokens.sum(dim=1)

    @property
    def mean(self) -> Tensor:
        """[B, K], nats per token; 0 where the row has no such turn."""
        return self.total / self.num_tokens.clamp(min=1)

    @property
    def present(self) -> Tensor:
        """[B, K], bool: which turns exist."""
        return self.num_tokens > 0


def completion_nll(
    model: nn.Module, micro: MicroBatch, *, pad_id: int, head: Head = Head.KEPT, cache: Cache | None = None
) -> TurnNLL:
    """NLL of every trained turn of a micro-batch, with its graph.

    Args:
        model: A causal language model, bare or with a PEFT adapter.
        micro: Its rows.
        pad_id: What to pad with; padding is masked and has no label.
        head: Where the log-likelihoods are read.
        cache: An empty cache to be filled with the keys and values of the whole rows (``Head.KEPT`` only).
    """
    tensors = pad(micro.rows, pad_id, device=next(model.parameters()).device)
    labels, turns = tensors["labels"], tensors["turns"]
    if not (labels != IGNORED).any(dim=1).all():
        empty = next(row.row_id for row in micro.rows if not any(end > start for start, end in row.spans))
        raise DataError(f"row {empty} has no completion token to train on; its weight would be 0/0.")
    inputs = {"input_ids": tensors["input_ids"], "attention_mask": tensors["attention_mask"]}
    # Position t predicts token t + 1: `first` predicts the first completion token of the micro-batch.
    first, last = 0, labels.shape[1] - 1
    if head is Head.FUSED:
        nll = -model(**inputs, labels=labels, fused_lm_head=True).log_probs
    else:
        extra: dict[str, object] = {"use_cache": cache is not None}
        if cache is not None:
            extra["past_key_values"] = cache
        if head is Head.KEPT:
            first = min(row.spans[0][0] for row in micro.rows) - 1
            last = max(row.spans[-1][1] for row in micro.rows) - 1
            extra["logits_to_keep"] = torch.arange(first, last, device=labels.device)
        logits = model(**inputs, **extra).logits
        nll = token_nll(logits[:, : last - first], labels[:, first + 1 : last + 1])
    turn = turns[:, first + 1 : last + 1]
    num_turns = max(len(row.spans) for row in micro.rows)
    members = [turn == k for k in range(num_turns)]
    if num_turns == 1:
        total = nll.sum(dim=1, keepdim=True)  # zero off the completion already
    else:
        total = torch.stack([(nll * member).sum(dim=1) for member in members], dim=1)
    num_tokens = torch.stack([member.sum(dim=1) for member in members], dim=1)
    return TurnNLL(total, num_tokens.to(total.dtype))


def bare(model: nn.Module) -> nn.Module:
    """The transformers model under a PEFT adapter, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def usable_head(model: nn.Module, wanted: Head) -> Head:
    """``kept`` needs a model whose forward takes ``logits_to_keep``; others give all logits."""
    if wanted is Head.KEPT and "logits_to_keep" not in inspect.signature(type(bare(model)).forward).parameters:
        return Head.FULL
    return wanted


TOLERANCE = 1e-4
"""Largest relative difference between two ways of computing one likelihood in float32 that rounding explains."""


def tolerance(model: nn.Module) -> float:
    """``TOLERANCE`` in float32; in half precision rounding alone gives about two digits."""
    autocast = torch.is_autocast_enabled() or hasattr(model, "_original_forward")
    half = autocast or any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
    return 3e-2 if half else TOLERANCE


def check_head(model: nn.Module, micro: MicroBatch, *, pad_id: int, head: Head) -> None:
    """Compare the chosen head with the plain forward on one micro-batch.

    Raises:
        TrainingError: they differ by more than rounding; with both numbers.
    """
    if head is Head.FULL:
        return
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            chosen = completion_nll(model, micro, pad_id=pad_id, head=head).mean
            plain = completion_nll(model, micro, pad_id=pad_id, head=Head.FULL).mean
    finally:
        model.train(was_training)
    worst = int((chosen - plain).abs().argmax())
    a, b = float(chosen.flatten()[worst]), float(plain.flatten()[worst])
    if not abs(a - b) <= tolerance(model) * max(1.0, abs(b)):
        raise TrainingError(
            f"self-check: the '{head}' head gives {a:.6f} nats per token where the plain forward gives {b:.6f}. "
            "This model's forward does something that this head does not know. Please report it with the model's name."
        )
