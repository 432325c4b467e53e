"""Antidote: after the user's fine-tuning, remove the weights that harmful completions lean on most.

    score_ij = |W_ij| * sqrt(s_j),    s_j = mean over harmful rows of sum over tokens of x_j^2            (Wanda)
    mask     = the share alpha of largest scores, in each output row of W
    W       <- W * (1 - mask), all masks computed before any weight is removed

    W   each LoRA factor, A and B, of the adapter; without an adapter the query, key and value projections
    x   input of W on harmful prompts with harmful completions, prompt tokens included, padding excluded

One forward pass over the harmful rows, no gradient; it does not matter how the user trained. Scores are computed and
ranked one matrix at a time, and only the masks are kept; ``scope`` "global" holds all scores. If the adapter also holds
the alignment (``finetune`` continues training the given one), part of the alignment can be removed too: the paper
merges the aligned adapter first.

Reference: T. Huang, G. Bhattacharya, P. Joshi, J. Kimball, L. Liu, "Antidote: Post-fine-tuning Safety Alignment for
Large Language Models against Harmful Fine-tuning", ICML 2025, https://arxiv.org/abs/2408.09600. The release has no
licence; this follows its description. Departures: the share is rounded to the nearest count (there up, so that a small
alpha still takes one weight of each row: ``rounding``); one ordinary forward of any batch size, padding masked (there
each layer runs twice on one row at a time). ``alpha`` = 0 changes nothing; it trains nothing.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from peft import PeftModel
from torch import Tensor, nn

from ...data.roles import Role
from ...errors import ConfigError, DataError, ModelError
from ...events import report_progress
from ...likelihood.inputs import squares, summed_inputs
from ...likelihood.reader import ModelReader
from ...mentions import setting
from ...models.adapters import PAPER_TARGETS
from ...training.defence import About, Repair

Scope = Literal["row", "matrix", "global"]
Rounding = Literal["nearest", "up"]


@dataclass(frozen=True, kw_only=True)
class AntidoteConfig:
    """Hyperparameters."""

    alpha: float = 0.1
    """Share of weights removed, 0 to 1. Release ("dense_ratio"): 0.1 for SST2, 0.05 for GSM8K and AGNEWS."""
    score: Literal["wanda", "magnitude", "random"] = "wanda"
    """"wanda": the paper. "magnitude" (|W|) and "random" need no data; the paper's ablation."""
    scope: Scope = "row"
    """The weights ranked together: those of an output row (release), of a matrix, or of all matrices."""
    rounding: Rounding = "nearest"
    """The rounding of the share to a count. "up": the release, at least one weight of each row at any alpha above 0."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"antidote.alpha is {self.alpha}: a share lies between 0 and 1. 0 removes nothing.")


def count(size: int, alpha: float, rounding: Rounding) -> int:
    """The share ``alpha`` of ``size`` weights as a number of weights."""
    return size - math.floor(size * (1 - alpha)) if rounding == "up" else math.floor(size * alpha + 0.5)


def masks_of(scores: Iterable[Tensor], *, alpha: float, scope: Scope, rounding: Rounding) -> list[Tensor]:
    """Boolean masks, True at the weights to remove.

    Args:
        scores: One [rows, columns] for each matrix, computed one after the other; the scope "global" keeps them all.
        alpha: The share to remove.
        scope: The weights that are ranked together.
        rounding: See ``count``.
    """
    if scope == "global":
        scores = list(scores)
        together = masks_of(
            [torch.cat([s.flatten() for s in scores])[None]], alpha=alpha, scope="row", rounding=rounding
        )
        parts = together[0][0].split([s.numel() for s in scores])
        return [part.view_as(score) for part, score in zip(parts, scores, strict=True)]

    def mask_of(score: Tensor) -> Tensor:
        ranked = score if scope == "row" else score.reshape(1, -1)
        top = ranked.topk(count(ranked.shape[1], alpha, rounding), dim=1).indices
        return torch.zeros_like(ranked, dtype=torch.bool).scatter_(1, top, True).view_as(score)

    return [*map(mask_of, scores)]  # a loop's variable would hold one score while the next is computed


def prunable(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers whose weights are candidates: the active adapter's factors, else query, key and value projections.

    Raises:
        ModelError: there are none.
    """
    if isinstance(model, PeftModel):
        adapter = model.active_adapter
        names = {f"lora_A.{adapter}", f"lora_B.{adapter}"}
        found = {n: m for n, m in model.named_modules() if ".".join(n.split(".")[-2:]) in names}
    else:
        targets = {*PAPER_TARGETS, "query_key_value", "qkv_proj"}
        found = {n: m for n, m in model.named_modules() if n.rpartition(".")[2] in targets}
    linear = {name: module for name, module in found.items() if isinstance(module, nn.Linear)}
    if not linear:
        raise ModelError(
            f"antidote finds nothing to remove in {type(model).__name__}: no LoRA factors, no linear layers called "
            f"{', '.join(PAPER_TARGETS)}, query_key_value or qkv_proj. Give the fine-tuned adapter as "
            f"{setting('adapter')}."
        )
    return linear


class Antidote(Repair):
    """Binds scores, masks and removal to a fine-tuned model."""

    about = About(
        summary="remove the weights that harm leans on",
        paper="2408.09600",
        forwards=1,  # of every harmful row, once
        backwards=0,
        extra_memory="1 byte per candidate weight, 1 number per input column; with global scope every score",
    )
    options = AntidoteConfig
    reads: tuple[Role, ...] = (Role.HARMFUL,)  # none for the scores that read no data
    neutral = {"alpha": 0.0}

    def __init__(self, config: AntidoteConfig) -> None:
        self.config = config
        if config.score != "wanda":
            self.reads = ()

    def repair(self, reader: ModelReader, *, seed: int) -> None:
        """Remove the weights, in place."""
        config, layers = self.config, list(prunable(reader.model).values())
        scores = self._scores(reader, layers, seed)
        masks = masks_of(scores, alpha=config.alpha, scope=config.scope, rounding=config.rounding)
        with torch.no_grad():
            for layer, mask in zip(layers, masks, strict=True):
                layer.weight.masked_fill_(mask, 0.0)

    def _scores(self, reader: ModelReader, layers: Sequence[nn.Linear], seed: int) -> Iterator[Tensor]:
        """Yield the scores of one layer after the other, [rows, columns], float32, each computed on demand."""
        if self.config.score == "magnitude":
            return (layer.weight.detach().float().abs() for layer in layers)
        if self.config.score == "random":
            generator = torch.Generator().manual_seed(seed)
            return (torch.rand(layer.weight.shape, generator=generator).to(layer.weight.device) for layer in layers)
        found = input_squares(reader, layers)
        return (layer.weight.detach().float().abs() * s.sqrt() for layer, s in zip(layers, found, strict=True))


def input_squares(reader: ModelReader, layers: Sequence[nn.Linear]) -> list[Tensor]:
    """s_j of each layer, [columns], from one pass over the harmful rows in evaluation mode.

    Raises:
        DataError: there are no harmful rows.
        Stopped: a listener asked for it.
    """
    num_rows = len(reader.rows.get(Role.HARMFUL, ()))
    if not num_rows:
        raise DataError(f"antidote scores weights on harmful rows and was given none. Give {setting('harmful_data')}.")
    sums = summed_inputs(
        reader,
        Role.HARMFUL,
        layers,
        squares,
        progress=lambda done: report_progress("repairing, harmful rows", done, num_rows),
    )
    report_progress("repairing, harmful rows", num_rows, num_rows)
    return [total / num_rows for total in sums]
