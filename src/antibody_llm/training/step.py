"""One whole optimiser step, as a defence sees it.

A step has micro-batches, on one or several ranks. Norms, cosines, multipliers and softmaxes belong to the step, never
to a micro-batch. ``StepContext`` sweeps, sums and restores, so that a defence can be written as in its paper.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..data.records import TokenizedRow
from ..likelihood.completion import evaluating, tolerance
from ..likelihood.microbatch import MicroBatch, StepBatch
from ..likelihood.ranks import all_reduce, all_reduce_gradients
from ..likelihood.reader import ModelReader
from ..likelihood.refusals import Refusals, Scoring
from ..models.adapters import trainable_parameters
from ..primitives.gradients import Gradients
from ..screening.anchors import Anchors, absent_anchors
from .sharding import check_sharding, require_shards, sharded_gradient, share_out


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


RowLoss = Callable[[MicroBatch], RowTerms]
Batches = Mapping[str, StepBatch]
"""The rows of an optimiser step by role."""


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


@dataclass(frozen=True, slots=True)
class RowRecord:
    """A step's weight and score of each row of this rank, in the order of ``StepBatch.rows()``, for samples.parquet."""

    weight: Tensor
    """Weight of each row; 1 means "as in SFT"."""
    score: Tensor | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of a defence's step: the update direction before clipping, and what to log."""

    gradients: Gradients
    loss: float
    metrics: dict[str, float] = field(default_factory=dict)
    rows: RowRecord | None = None
    frozen: frozenset[int] = frozenset()
    """Indices of parameters that the optimiser must skip, so that neither momentum nor decay moves them."""


def no_update(parameters: Sequence[Tensor], rows: RowRecord) -> StepResult:
    """The result of a step that has nothing to train on: no gradient, and neither momentum nor decay moves a weight."""
    return StepResult(
        [torch.zeros_like(p) for p in parameters], 0.0, rows=rows, frozen=frozenset(range(len(parameters)))
    )


@dataclass(slots=True)
class Clock:
    """The position of a run. The trainer, or the owner of the loop, sets it; a defence reads it from its context."""

    step: int = 0
    max_steps: int = 0
    steps_per_epoch: int = 0
    learning_rate: float = 0.0
    max_grad_norm: float = 0.0


class StepContext(ModelReader):
    """The model of a run, with what a defence needs of it: likelihoods of rows, gradients, and the clock.

    Args:
        model: See ``ModelReader``, for this argument and those that are not listed here.
        clock: The position of the run; the caller moves it.
        seed: The run's seed.
        anchors: The labelled rows that were stored with the model when it was aligned.
        aligned_reader: Loads the model that evidence is read with, where that is not the one that is trained.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        rows: Mapping[str, Sequence[TokenizedRow]] | None = None,
        pad_id: int = 0,
        refusals: Refusals | None = None,
        rank: int = 0,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        batch_size: int = 16,
        base: nn.Module | None = None,
        clock: Clock | None = None,
        seed: int = 0,
        anchors: Anchors | None = None,
        aligned_reader: Callable[[], ModelReader] | None = None,
    ) -> None:
        super().__init__(
            model,
            rows=rows,
            pad_id=pad_id,
            refusals=refusals,
            rank=rank,
            autocast=autocast,
            batch_size=batch_size,
            base=base,
        )
        self._clock = clock or Clock()
        self.seed = seed
        self._anchors = anchors
        self._aligned_reader = aligned_reader
        self.adopt()

    def adopt(self) -> None:
        """Take the model's trainable weights as they are now; sharding replaces them."""
        self.sharded = share_out(self.model)
        self.parameters = self._all_parameters = list(trainable_parameters(self.model).values())
        if self.sharded:
            require_shards(self.parameters)

    def check(self, scoring: Scoring | None = None) -> None:
        """Check as every reader does, and compare the gradients of a sharded model with plain ones."""
        super().check(scoring)
        if not self.sharded:
            return
        micro = MicroBatch.of(next(iter(self.rows.values()))[:4])
        with self.autocast():  # entered for each pass again below, since a cached cast hides a perturbation
            allowed = tolerance(self.model)
        with evaluating(self.model):
            total = partial(self._nll_of, micro)
            check_sharding(self.model, self.parameters, total, allowed=allowed)

    def _nll_of(self, micro: MicroBatch) -> Tensor:
        return self.completion_nll(micro).row_total.sum()

    # -- the clock -----------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """The optimiser step that is being taken, 0-based."""
        return self._clock.step

    @property
    def max_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self._clock.max_steps

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass over the rows of the stage's main role."""
        return self._clock.steps_per_epoch

    @property
    def learning_rate(self) -> float:
        """The optimiser's learning rate at this step, after warm-up and schedule."""
        return self._clock.learning_rate

    @property
    def max_grad_norm(self) -> float:
        """The norm that the trainer clips the update to; 0 is no clipping."""
        return self._clock.max_grad_norm

    # -- what the run provides -----------------------------------------------------------------------------------

    @property
    def anchors(self) -> Anchors:
        """The provider's labelled rows, with their evidence.

        Raises:
            ModelError: none are stored with the model.
        """
        if self._anchors is None:
            raise absent_anchors("the model")
        return self._anchors

    @property
    def continues(self) -> bool:
        """Whether an upload has shaped the model before this run, so that it is no judge of another one."""
        return self._aligned_reader is not None

    @contextmanager
    def evidence_reader(self) -> Iterator[ModelReader]:
        """Yield what reads evidence: this model, or the aligned one of its line, in memory only inside."""
        yield self if self._aligned_reader is None else self._aligned_reader()

    # -- batches -------------------------------------------------------------------------------------------------

    def with_refusals(self, batch: StepBatch) -> StepBatch:
        """A batch of the same prompts, each with refusal number (step * B + position in the global batch) mod n.

        A row with several trained turns keeps the last one's prompt.
        """
        start = self.step * batch.num_rows
        return batch.with_completions([self.refusals.row(row, start + position) for row, position in batch.rows()])

    # -- gradients -----------------------------------------------------------------------------------------------

    def gradient(self, loss: RowLoss | Literal["token_mean_nll", "sequence_mean_nll"], batch: StepBatch) -> Sweep:
        """Sweep the micro-batches of a step for the gradient of the global weighted mean of a loss over its rows.

        A softmax over the step needs no second sweep. The mean does not change when all weights are multiplied by one
        constant, so e^(a_i - c) is accumulated with one running maximum c shared by all ranks, and what has been
        accumulated is multiplied by e^(c - c') when c rises to c'.

        Args:
            loss: A function that gives each row's terms, or the name of a plain mean.
            batch: This rank's share of the step.
        """
        if isinstance(loss, str):
            loss = {"token_mean_nll": self.token_mean_nll, "sequence_mean_nll": self.sequence_mean_nll}[loss]
        gradients: Gradients | None = None
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)  # numerator, denominator, weights
        c = torch.tensor(float("-inf"), device=self.device)
        weights: list[Tensor] = []
        scores: list[Tensor] = []
        for micro in batch.micro_batches:
            terms = loss(micro)
            counted = torch.tensor(micro.counted, device=self.device)
            if terms.log_weight is None:
                log_weight = torch.zeros_like(terms.denominator)
                risen = torch.zeros((), device=self.device)
            else:
                log_weight = terms.log_weight.float()
                local = torch.where(counted, log_weight, -torch.inf).max()
                risen = torch.maximum(c, all_reduce(local, "max"))
            if risen > c and gradients is not None:
                factor = torch.exp(c - risen)
                gradients = [g.mul_(factor.to(g.dtype)) for g in gradients]
                sums *= factor
                weights = [w * factor for w in weights]
            c = risen
            w = torch.where(counted, torch.exp(log_weight - c), 0.0)
            numerator = (w * terms.numerator).sum()
            part = self._gradient_of(numerator)
            if gradients is None:
                gradients = part
            else:
                torch._foreach_add_(gradients, part)
            sums += torch.stack([numerator.detach(), (w * terms.denominator).sum(), w.sum()]).double()
            weights.append(w)
            if terms.score is not None:
                scores.append(terms.score)
        assert gradients is not None, "a step has at least one micro-batch on every rank"
        if not self.sharded:
            all_reduce_gradients(gradients)
        all_reduce(sums)
        numerator_sum, denominator_sum, weight_sum = sums.tolist()
        torch._foreach_div_(gradients, denominator_sum)
        return Sweep(
            gradients,
            loss=numerator_sum / denominator_sum,
            weights=torch.cat(weights) / weight_sum,
            scores=torch.cat(scores) if scores else None,
        )

    def _gradient_of(self, total: Tensor) -> Gradients:
        """The gradient of a scalar of this rank; if the model is sharded, summed over ranks."""
        if self.sharded:
            return sharded_gradient(total, self.parameters, self._all_parameters)
        return list(torch.autograd.grad(total, self.parameters, materialize_grads=True))

    def token_mean_nll(self, micro: MicroBatch) -> RowTerms:
        """The terms of the mean over all completion tokens of the step, which is Hugging Face's loss."""
        nll = self.completion_nll(micro)
        return RowTerms(nll.row_total, nll.row_tokens)

    def sequence_mean_nll(self, micro: MicroBatch) -> RowTerms:
        """The terms of the mean over rows of each row's mean over its tokens."""
        nll = self.completion_nll(micro)
        return RowTerms(nll.row_total / nll.row_tokens, torch.ones_like(nll.row_tokens))
