"""NLL of refusals to the prompts of a micro-batch, computed beside the training forward.

    [x_1 .. x_P, y]   the training forward, which leaves its keys and values, and predicts r_1 where it predicts y_1
    [r_1 .. r_{R-1}]  the refusal: attends to x_1 .. x_P of the above and to itself

``cached`` runs only the second line, without gradient, on the first line's keys and values: the prompt is computed once
for both. y and the padding are masked, and r continues from x_P's position. ``separate`` is a short forward of [x, r]
alone, for models whose layers are not plain causal attention (sliding window, recurrent, hybrid), under gradient
checkpointing (which keeps no cache) and with a quantised base. The two agree up to rounding, and are compared once at
the start of a run.

Source: the two NLLs of s_i in Antibody (2603.00498), Sec. 4.2; the arrangement is ours. The released code runs three
forwards. A packed row with a 4-D mask gives the same numbers, but puts the refusal through the backward pass too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from ..data.records import Template, TokenizedRow
from ..errors import ConfigError, TrainingError
from ..mentions import setting
from ..primitives.likelihood import IGNORED, token_nll
from .completion import (
    CompletionLogits,
    Past,
    TurnNLL,
    bare,
    completion_logits,
    completion_nll,
    evaluating,
    tolerance,
)
from .microbatch import MicroBatch


class Scoring(StrEnum):
    """The forward in which refusals are scored."""

    AUTO = "auto"
    CACHED = "cached"
    SEPARATE = "separate"


@dataclass(frozen=True, slots=True)
class Refusals:
    """Generic one-line refusals as token ids, rendered for each template in use.

    ``texts`` is the list as given; ``ids[template][i]`` is the i-th one as it would be trained, EOS included.
    """

    texts: tuple[str, ...]
    ids: dict[Template, tuple[tuple[int, ...], ...]]

    def __len__(self) -> int:
        return len(self.texts)

    def of(self, row: TokenizedRow, index: int) -> tuple[int, ...]:
        """Refusal ``index`` (mod n), rendered like ``row``."""
        return self.ids[row.template][index % len(self.texts)]

    def row(self, row: TokenizedRow, index: int, turn: int = -1) -> TokenizedRow:
        """``row`` with the completion of one trained turn replaced by refusal ``index``, and what follows cut off."""
        start, _ = row.spans[turn]
        refusal = self.of(row, index)
        return TokenizedRow(
            row.row_id, (*row.input_ids[:start], *refusal), ((start, start + len(refusal)),), row.template
        )


def plain_causal_attention(model: nn.Module) -> bool:
    """Whether every layer attends to all earlier tokens; only then can a refusal use another row's keys."""
    config: Any = model.config
    config = config.get_text_config()
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None:
        return all(kind == "full_attention" for kind in layer_types)
    windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    return not windowed and not hasattr(config, "layers_block_type") and not getattr(config, "is_recurrent", False)


def checkpointed(model: nn.Module) -> bool:
    """Whether gradient checkpointing is on."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def usable_scoring(model: nn.Module, wanted: Scoring) -> Scoring:
    """The form to use; ``auto`` is ``cached`` wherever that is exact.

    Raises:
        ConfigError: ``cached`` was asked for by name and is impossible; the message says why.
    """
    base = bare(model)
    obstacles = {
        "its attention is not plain causal attention in every layer": not plain_causal_attention(base),
        "gradient checkpointing keeps no keys and values": checkpointed(base),
        "its base is quantised": bool(getattr(base, "is_quantized", False)),
    }
    reasons = [reason for reason, holds in obstacles.items() if holds]
    if wanted is Scoring.CACHED and reasons:
        raise ConfigError(
            "refusals cannot be scored on the training forward's keys and values with this model: "
            f"{reasons[0]}. Set {setting('options.scoring', 'separate')}."
        )
    if wanted is Scoring.AUTO:
        return Scoring.SEPARATE if reasons else Scoring.CACHED
    return wanted


def completion_and_refusal_nll(
    model: nn.Module,
    micro: MicroBatch,
    refusals: Refusals,
    *,
    pad_id: int,
    scoring: Scoring,
) -> tuple[TurnNLL, TurnNLL]:
    """NLL(y|x) with its graph, and NLL(r|x) without, for every trained turn of a micro-batch.

    Args:
        model: A causal language model, bare or with a PEFT adapter.
        micro: The rows.
        refusals: The list; a row is scored against refusal number (row id) mod n.
        pad_id: The token to pad with.
        scoring: ``CACHED`` or ``SEPARATE``.
    """
    pairs = [(i, k) for i, row in enumerate(micro.rows) for k in range(len(row.spans))]
    ids = [refusals.of(micro.rows[i], micro.rows[i].row_id) for i, _ in pairs]
    if scoring is Scoring.CACHED:
        cache = DynamicCache()
        found = completion_logits(model, micro, pad_id=pad_id, cache=cache)
        completions = found.by_turn(max(len(row.spans) for row in micro.rows))
        totals = _cached_refusal_totals(model, micro, pairs, ids, cache, found)
    else:
        completions = completion_nll(model, micro, pad_id=pad_id)
        rows = tuple(refusals.row(micro.rows[i], micro.rows[i].row_id, turn=k) for i, k in pairs)
        with torch.no_grad():
            totals = completion_nll(model, MicroBatch.of(rows), pad_id=pad_id).row_total
    total, num_tokens = torch.zeros_like(completions.num_tokens), torch.zeros_like(completions.num_tokens)
    where = ([i for i, _ in pairs], [k for _, k in pairs])
    total[where] = totals
    num_tokens[where] = torch.tensor([len(r) for r in ids], dtype=total.dtype, device=total.device)
    return completions, TurnNLL(total, num_tokens)


@torch.no_grad()
def completion_and_several_refusals(
    model: nn.Module,
    micro: MicroBatch,
    refusals: Refusals,
    numbers: Sequence[Sequence[int]],
    *,
    pad_id: int,
    scoring: Scoring,
    with_completion: bool = True,
) -> tuple[Tensor | None, Tensor]:
    """NLL(y|x) and NLL(r_1|x) .. NLL(r_k|x), nats per token, without graph; the prompt is computed once for all.

    Args:
        model: A causal language model, bare or with a PEFT adapter.
        micro: Rows of one trained turn each.
        refusals: The list.
        numbers: [B][k], the refusals of the list that each row is scored against, mod n; k at least 1.
        pad_id: The token to pad with.
        scoring: ``CACHED`` or ``SEPARATE``.
        with_completion: Whether to compute NLL(y|x); without it the first forward is as short as prompt and refusal.

    Returns:
        [B] or None, and [B, k].
    """
    columns = [list(column) for column in zip(*numbers, strict=True)]

    def refused(column: list[int]) -> MicroBatch:
        rows = tuple(refusals.row(row, number) for row, number in zip(micro.rows, column, strict=True))
        return MicroBatch(rows, micro.counted, micro.positions)

    def mean(batch: MicroBatch) -> Tensor:
        return completion_nll(model, batch, pad_id=pad_id).mean[:, 0]

    if scoring is Scoring.SEPARATE:
        separate = torch.stack([mean(refused(column)) for column in columns], dim=1)
        return (mean(micro) if with_completion else None), separate
    cache = DynamicCache()
    found = completion_logits(model, micro if with_completion else refused(columns.pop(0)), pad_id=pad_id, cache=cache)
    first = found.by_turn(1).mean[:, 0]
    means = [] if with_completion else [first]
    pairs = [(i, 0) for i in range(len(micro.rows))]
    for column in columns:
        ids = [refusals.of(row, number) for row, number in zip(micro.rows, column, strict=True)]
        lengths = torch.tensor([float(len(r)) for r in ids], device=first.device)
        means.append(_cached_refusal_totals(model, micro, pairs, ids, cache, found) / lengths)
    return (first if with_completion else None), torch.stack(means, dim=1)


@torch.no_grad()
def _cached_refusal_totals(
    model: nn.Module,
    micro: MicroBatch,
    pairs: list[tuple[int, int]],
    ids: list[tuple[int, ...]],
    cache: Cache,
    found: CompletionLogits,
) -> Tensor:
    """[pairs], nats. Feeds [r_1 .. r_{R-1}] onto the keys and values of x_1 .. x_P.

    Args:
        model: The model.
        micro: The rows whose forward came first.
        pairs: The row and the turn of each refusal.
        ids: The refusals.
        cache: The keys and values of that forward.
        found: What it predicted.
    """
    device = found.logits.device
    rows = torch.tensor([i for i, _ in pairs], device=device)
    starts = torch.tensor([micro.rows[i].spans[k][0] for i, k in pairs])  # P
    after_prompt = found.logits.detach()[rows, (starts - 1 - found.first).to(device)]
    first = token_nll(after_prompt[:, None], torch.tensor([[r[0]] for r in ids], device=device))[:, 0]
    width, num_past = max(len(r) for r in ids) - 1, int(starts.max())  # later positions are masked in every row
    if width == 0:
        return first
    inputs = torch.zeros(len(pairs), width, dtype=torch.long)
    targets = torch.full((len(pairs), width), IGNORED)
    for n, refusal in enumerate(ids):
        inputs[n, : len(refusal) - 1] = torch.tensor(refusal[:-1])
        targets[n, : len(refusal) - 1] = torch.tensor(refusal[1:])
    kept: list[tuple[Tensor, Tensor]] = []
    layers: list[Any] = cache.layers  # plain attention keeps keys and values in every one
    for layer in layers:
        keys, values = layer.keys[:, :, :num_past].detach(), layer.values[:, :, :num_past].detach()
        kept.append((keys, values) if len(pairs) == len(micro.rows) else (keys[rows], values[rows]))
    past = Past(kept, (torch.arange(num_past) < starts[:, None]).long().to(device))
    real = (targets != IGNORED).long().to(device)
    logits = model(input_ids=inputs.to(device), **past.inputs(real)).logits
    return first + token_nll(logits, targets.to(device)).sum(dim=1)


def check_scoring(model: nn.Module, micro: MicroBatch, refusals: Refusals, *, pad_id: int, scoring: Scoring) -> None:
    """Compare ``cached`` with ``separate`` on one micro-batch.

    Raises:
        TrainingError: they differ by more than rounding; the message has both numbers.
    """
    if scoring is not Scoring.CACHED:
        return
    with evaluating(model), torch.no_grad():
        cached, separate = (
            completion_and_refusal_nll(model, micro, refusals, pad_id=pad_id, scoring=form)[1].mean
            for form in (Scoring.CACHED, Scoring.SEPARATE)
        )
    worst = int((cached - separate).abs().argmax())
    a, b = float(cached.flatten()[worst]), float(separate.flatten()[worst])
    if not abs(a - b) <= tolerance(model) * max(1.0, abs(b)):
        raise TrainingError(
            f"self-check: a refusal scored beside the training forward costs {a:.6f} nats per token, in a separate "
            f"forward {b:.6f}. This model's attention is not plain causal attention. "
            f"Set {setting('options.scoring', 'separate')}."
        )
