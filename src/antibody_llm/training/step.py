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
from ..likelihood.reader import ModelReader
from ..likelihood.refusals import Refusals, Scoring, usable_scoring
from ..likelihood.shared_prompts import check_shared_prompts, read_prompts
from ..models.adapters import trainable_parameters
from ..primitives.gradients import Gradients
from ..screening.anchors import Anchors, absent_anchors
from .sharding import check_sharding, require_shards, sharded_gradient, share_out
from .sweep import RowTerms as RowTerms
from .sweep import RunningMean as RunningMean
from .sweep import Sweep as Sweep

RowLoss = Callable[[MicroBatch], RowTerms]
Batches = Mapping[str, StepBatch]
"""The rows of an optimiser step by role."""


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
        mean = RunningMean(self.gradient_of, self.device, sharded=self.sharded)
        for micro in batch.micro_batches:
            mean.add(loss(micro), micro)
        return mean.sweep()

    def gradients_on_shared_prompts(self, *batches: StepBatch) -> list[Sweep]:
        """Sweep batches of the same prompts for the gradient of each one's token mean; the prompts are computed once.

        The same prompts are always computed in the same way, so that two gradients at neighbouring weights differ by
        the weights alone. Where prompts cannot be shared, each batch has a sweep of its own.

        Args:
            batches: Batches of the same prompts in the same micro-batches, each with completions of its own. The graph
                of one is in memory at a time, with that of the prompts; the longest belongs last.
        """
        if not self._shares_prompts(batches):
            return [self.gradient("token_mean_nll", batch) for batch in batches]
        means = [RunningMean(self.gradient_of, self.device, sharded=self.sharded) for _ in batches]
        for micros in zip(*(batch.micro_batches for batch in batches), strict=True):
            with self.autocast():
                prompts = read_prompts(self.model, micros, pad_id=self.pad_id)
            for mean, micro in zip(means, micros, strict=True):
                with self.autocast():
                    nll = prompts.completion_nll(self.model, micro, pad_id=self.pad_id)
                mean.add(RowTerms(nll.row_total, nll.row_tokens), micro, keep_graph=mean is not means[-1])
        return [mean.sweep() for mean in means]

    def _shares_prompts(self, batches: Sequence[StepBatch]) -> bool:
        if self.sharded or usable_scoring(self.model, Scoring.AUTO) is not Scoring.CACHED:
            return False
        return all(row.spans[0][0] > 1 for batch in batches for row, _ in batch.rows())  # else nothing is shared

    def check_shared_prompts(self, *batches: StepBatch) -> None:
        """Compare ``gradients_on_shared_prompts`` with separate forwards on the first micro-batch.

        Raises:
            TrainingError: they differ by more than rounding.
        """
        if self._shares_prompts(batches):
            micros = [batch.micro_batches[0] for batch in batches]
            with self.autocast():
                check_shared_prompts(self.model, self.parameters, micros, pad_id=self.pad_id)

    def gradient_of(self, total: Tensor, *, keep_graph: bool = False) -> Gradients:
        """The gradient of a scalar of this rank; if the model is sharded, summed over ranks.

        Args:
            total: The scalar.
            keep_graph: Whether another gradient will be taken through a part of its graph; never of a sharded model.
        """
        if self.sharded:
            return sharded_gradient(total, self.parameters, self._all_parameters)
        return list(torch.autograd.grad(total, self.parameters, retain_graph=keep_graph, materialize_grads=True))

    def token_mean_nll(self, micro: MicroBatch) -> RowTerms:
        """The terms of the mean over all completion tokens of the step, which is Hugging Face's loss."""
        nll = self.completion_nll(micro)
        return RowTerms(nll.row_total, nll.row_tokens)

    def sequence_mean_nll(self, micro: MicroBatch) -> RowTerms:
        """The terms of the mean over rows of each row's mean over its tokens."""
        nll = self.completion_nll(micro)
        return RowTerms(nll.row_total / nll.row_tokens, torch.ones_like(nll.row_tokens))
