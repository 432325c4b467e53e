"""A weighted mean over the rows of a step, and its gradient, summed up micro-batch by micro-batch."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..likelihood.microbatch import MicroBatch
from ..likelihood.ranks import all_reduce, all_reduce_gradients
from ..primitives.gradients import Gradients


@dataclass(frozen=True, slots=True)
class RowTerms:
    """One micro-batch's share of a weighted mean over rows,  sum_i e^a_i num_i / sum_i e^a_i den_i.

    Attributes:
        numerator: [B], with graph: for the token mean, the NLL summed over the row's completion tokens.
        denominator: [B], no graph: for the token mean, the number of these tokens.
        log_weight: [B], no graph: a_i. None if all are 0.
        score: [B], no graph: the score that the weight was computed from, for the record.
    """

    numerator: Tensor
    denominator: Tensor
    log_weight: Tensor | None = None
    score: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Sweep:
    """The gradient of a loss over one whole step.

    Attributes:
        gradients: One per trainable parameter, summed over ranks: the gradient of the global mean.
        loss: The global mean, nats per token (or per row, as the terms define it).
        weights: [rows of this rank], in the order of ``StepBatch.rows()``: e^a_i / sum over all ranks; they add to 1.
        scores: [rows of this rank], in the order of ``weights``, if the terms had scores.
    """

    gradients: Gradients
    loss: float
    weights: Tensor
    scores: Tensor | None


class TakesGradient(Protocol):
    """What ``StepContext.gradient_of`` is."""

    def __call__(self, total: Tensor, *, keep_graph: bool = False) -> Gradients:
        """Return the gradient of a scalar."""


class RunningMean:
    """The sums over the micro-batches so far, and what ``StepContext.gradient`` says of weights.

    Args:
        gradient_of: Takes the gradient of a scalar.
        device: The device of the sums.
        sharded: Whether the gradients are summed over ranks as they come.
    """

    def __init__(self, gradient_of: TakesGradient, device: torch.device, *, sharded: bool) -> None:
        self.gradient_of, self.sharded = gradient_of, sharded
        self.gradients: Gradients | None = None
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # numerator, denominator, weights
        self.c = torch.tensor(float("-inf"), device=device)
        """The highest log-weight so far, over all ranks; not used where all are 0."""
        self.weights: list[Tensor] = []
        self.scores: list[Tensor] = []

    def add(self, terms: RowTerms, micro: MicroBatch, *, keep_graph: bool = False) -> None:
        """Add a micro-batch's share, which takes its gradient.

        Args:
            terms: The share.
            micro: Its rows.
            keep_graph: Whether another gradient will be taken through a part of the graph.
        """
        w = self._weights(terms, torch.tensor(micro.counted, device=self.sums.device))
        numerator = (w * terms.numerator).sum()
        part = self.gradient_of(numerator, keep_graph=keep_graph)
        if self.gradients is None:
            self.gradients = part
        else:
            torch._foreach_add_(self.gradients, part)
        self.sums += torch.stack([numerator.detach(), (w * terms.denominator).sum(), w.sum()]).double()
        self.weights.append(w)
        if terms.score is not None:
            self.scores.append(terms.score)

    def _weights(self, terms: RowTerms, counted: Tensor) -> Tensor:
        """[B]: e^(a_i - c) of the rows that count, once c has risen to their highest a_i."""
        if terms.log_weight is None:
            return counted.to(terms.denominator.dtype)
        log_weight = terms.log_weight.float()
        local = torch.where(counted, log_weight, -torch.inf).max()
        risen = torch.maximum(self.c, all_reduce(local, "max"))
        if self.gradients is not None and risen > self.c:
            factor = torch.exp(self.c - risen)
            self.gradients = [g.mul_(factor.to(g.dtype)) for g in self.gradients]
            self.sums *= factor
            self.weights = [w * factor for w in self.weights]
        self.c = risen
        return torch.where(counted, torch.exp(log_weight - risen), 0.0)

    def sweep(self) -> Sweep:
        """The global mean over all micro-batches of all ranks, with its gradient."""
        assert self.gradients is not None, "a step has at least one micro-batch on every rank"
        if not self.sharded:
            all_reduce_gradients(self.gradients)
        all_reduce(self.sums)
        numerator_sum, denominator_sum, weight_sum = self.sums.tolist()
        torch._foreach_div_(self.gradients, denominator_sum)
        return Sweep(
            self.gradients,
            loss=numerator_sum / denominator_sum,
            weights=torch.cat(self.weights) / weight_sum,
            scores=torch.cat(self.scores) if self.scores else None,
        )
