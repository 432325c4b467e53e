"""What a defence sees: one whole optimiser step.

A step has micro-batches, on one or several ranks. Norms, cosines, multipliers and softmaxes belong to the step, never
to a micro-batch; ``StepContext`` does the sweeping, summing and restoring, so that a defence is written as its paper
is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..data.records import TokenizedRow
from ..data.roles import Role, Stage
from ..errors import ConfigError
from ..mentions import setting
from ..models.adapters import adapter_disabled, trainable_parameters
from ..models.deployment import Deployment
from ..primitives.gradients import Gradients
from .batches import MicroBatch, StepBatch
from .likelihood import Head, TurnNLL, check_head, completion_nll, usable_head
from .preparation import TrainingData
from .ranks import all_reduce, all_reduce_gradients, num_ranks
from .refusals import Refusals, Scoring, check_scoring, completion_and_refusal_nll, usable_scoring


@dataclass(frozen=True, slots=True)
class RowTerms:
    """One micro-batch's share of a weighted mean over rows,  sum_i e^a_i num_i / sum_i e^a_i den_i.

    Attributes:
        numerator: [B], with graph: for the token mean, the NLL summed over the row's completion tokens.
        denominator: [B], no graph: for the token mean, the number of these tokens.
        log_weight: [B], no graph: a_i. None where all are 0.
        score: [B], no graph: what the weight was made from, for the record.
    """

    numerator: Tensor
    denominator: Tensor
    log_weight: Tensor | None = None
    score: Tensor | None = None


RowLoss = Callable[[MicroBatch], RowTerms]


@dataclass(frozen=True, slots=True)
class Sweep:
    """The gradient of a loss over one whole step.

    Attributes:
        gradients: One per trainable parameter, summed over ranks: the gradient of the global mean.
        loss: That mean, nats per token (or per row, as the terms define it).
        weights: [rows of this rank], in the order of ``StepBatch.rows()``: e^a_i / sum over all ranks; they add to 1.
        scores: Likewise, if the terms had scores.
    """

    gradients: Gradients
    loss: float
    weights: Tensor
    scores: Tensor | None


@dataclass(frozen=True, slots=True)
class RowRecord:
    """What a step did with each row of this rank, in the order of ``StepBatch.rows()``; lands in samples.parquet."""

    weight: Tensor
    """1 means "as in SFT"."""
    score: Tensor | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a defence hands back: the update direction before clipping, and what to log."""

    gradients: Gradients
    loss: float
    metrics: dict[str, float] = field(default_factory=dict)
    rows: RowRecord | None = None
    frozen: frozenset[int] = frozenset()
    """Indices of parameters that the optimiser must pass over: neither momentum nor decay moves them either."""


class StepContext:
    """The model of a run, behind the few verbs that a defence needs.

    Args:
        model: The bare model or PEFT model (never DDP's wrapper), on its device.
        rows: The tokenised rows by role.
        pad_id: The tokenizer's padding id.
        refusals: Generic refusals, where the defence scores against them.
        head: How log-likelihoods are read off the model.
        seed: The run's seed.
        autocast: Entered around every forward; anew each time, since a cached cast hides a perturbation.
        batch_size: Rows per forward pass where a verb walks over a whole role.
        base: The model before its alignment, where that is not the adapter switched off.
        folder: Where the aligned model lies, with what was stored beside it when it was aligned.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        rows: Mapping[str, Sequence[TokenizedRow]] | None = None,
        pad_id: int = 0,
        refusals: Refusals | None = None,
        head: Head = Head.KEPT,
        seed: int = 0,
        rank: int = 0,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        batch_size: int = 16,
        base: nn.Module | None = None,
        folder: Path | None = None,
    ) -> None:
        self.model = model
        self.folder = folder
        self.rows = dict(rows or {})
        self.pad_id = pad_id
        self.seed = seed
        self.rank = rank
        self.head = usable_head(model, head)
        self.parameters = list(trainable_parameters(model).values())
        self.step = 0
        """The optimiser step that is being taken, 0-based."""
        self.max_steps = 0
        """Optimiser steps of the whole run."""
        self.steps_per_epoch = 0
        self.learning_rate = 0.0
        """Of this optimiser step, after warm-up and schedule."""
        self.max_grad_norm = 0.0
        """To which the trainer clips the update; 0 is no clipping."""
        self.autocast = autocast
        self._refusals = refusals
        self._batch_size = batch_size
        self._base = base

    # -- likelihoods ---------------------------------------------------------------------------------------------

    @property
    def refusals(self) -> Refusals:
        """The run's refusal list.

        Raises:
            ConfigError: there is none.
        """
        if self._refusals is None:
            raise ConfigError(
                f"this defence scores against refusals, and the run has none. Give {setting('refusals')}."
            )
        return self._refusals

    def completion_nll(self, micro: MicroBatch) -> TurnNLL:
        """NLL(y|x) of every trained turn, with its graph."""
        with self.autocast():
            return completion_nll(self.model, micro, pad_id=self.pad_id, head=self.head)

    def completion_and_refusal_nll(self, micro: MicroBatch, scoring: Scoring) -> tuple[TurnNLL, TurnNLL]:
        """NLL(y|x) with its graph and NLL(r|x) without, from one forward where ``scoring`` allows it."""
        with self.autocast():
            return completion_and_refusal_nll(
                self.model,
                micro,
                self.refusals,
                pad_id=self.pad_id,
                scoring=usable_scoring(self.model, scoring, self.head),
                head=self.head,
            )

    def with_refusals(self, batch: StepBatch) -> StepBatch:
        """The same prompts, each with one generic refusal: number (step * B + position in the global batch) mod n.

        Of a row with several trained turns, the last one's prompt.
        """
        start = self.step * batch.num_rows
        return batch.with_completions([self.refusals.row(row, start + position) for row, position in batch.rows()])

    def sequence_nll(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """(total [B], num_tokens [B]) of this rank's rows, no gradient; nats summed over a row's completion tokens."""
        with torch.no_grad():
            parts = [self.completion_nll(micro) for micro in batch.micro_batches]
        return torch.cat([p.row_total for p in parts]), torch.cat([p.row_tokens for p in parts])

    def over_rows(
        self,
        role: str | Sequence[TokenizedRow],
        values: Callable[[MicroBatch], Tensor],
        width: int | None = None,
    ) -> Tensor:
        """One number for every row of a role, without gradient: [rows], float32, the same on every rank.

        With a ``width``, that many numbers: [rows, width]. Rows of no role may be given themselves.

        The rows are sorted by length, so that little is padded, and shared out over the ranks. The model's mode
        (training or not) is left alone.
        """
        rows = self.rows[role] if isinstance(role, str) else role
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i].input_ids), i))[self.rank :: num_ranks()]
        result = torch.zeros(len(rows) if width is None else (len(rows), width), device=self.device)
        with torch.no_grad():
            for start in range(0, len(order), self._batch_size):
                some = order[start : start + self._batch_size]
                micro = MicroBatch(tuple(rows[i] for i in some), (True,) * len(some), tuple(range(len(some))))
                result[some] = values(micro).float()
        return all_reduce(result)

    # -- gradients -----------------------------------------------------------------------------------------------

    def gradient(self, loss: RowLoss | Literal["token_mean_nll", "sequence_mean_nll"], batch: StepBatch) -> Sweep:
        """Sweep the micro-batches of a step: the gradient of the global weighted mean of a loss over its rows.

        A softmax over the step needs no second sweep. The mean does not change when all weights are multiplied by one
        constant, so e^(a_i - c) is accumulated with one running maximum c shared by all ranks, and whatever stands
        accumulated is multiplied by e^(c - c') when c rises to c'.

        Args:
            loss: What each row contributes, or the name of a plain mean.
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
            part = torch.autograd.grad(numerator, self.parameters, materialize_grads=True)
            if gradients is None:
                gradients = list(part)
            else:
                torch._foreach_add_(gradients, part)
            sums += torch.stack([numerator.detach(), (w * terms.denominator).sum(), w.sum()]).double()
            weights.append(w)
            if terms.score is not None:
                scores.append(terms.score)
        assert gradients is not None, "a step has at least one micro-batch on every rank"
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

    def token_mean_nll(self, micro: MicroBatch) -> RowTerms:
        """Terms of the mean over all completion tokens of the step: Hugging Face's loss."""
        nll = self.completion_nll(micro)
        return RowTerms(nll.row_total, nll.row_tokens)

    def sequence_mean_nll(self, micro: MicroBatch) -> RowTerms:
        """Terms of the mean over rows of each row's mean over its tokens."""
        nll = self.completion_nll(micro)
        return RowTerms(nll.row_total / nll.row_tokens, torch.ones_like(nll.row_tokens))

    # -- the model, for a moment otherwise -----------------------------------------------------------------------

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Inside, the base model speaks: the adapter is off, no ``requires_grad`` flag is touched."""
        with adapter_disabled(self.model):
            yield

    @contextmanager
    def before_alignment(self) -> Iterator[nn.Module]:
        """Yields the model as it was before its alignment: a model of its own, or this one with its adapter off.

        Raises:
            ModelError: there is neither.
        """
        if self._base is not None:
            yield self._base
            return
        with self.without_adapter():
            yield self.model

    # -- the run -------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def all_reduce(self, tensor: Tensor, op: Literal["sum", "max"] = "sum") -> Tensor:
        """Sum or maximum over all ranks, in place."""
        return all_reduce(tensor, op)

    def check(self, scoring: Scoring | None = None) -> None:
        """Compare what leans on a library's internals with the plain path, on the first rows of the main role.

        Raises:
            TrainingError: they differ by more than rounding.
        """
        rows = tuple(next(iter(self.rows.values()))[:4])
        micro = MicroBatch(rows, (True,) * len(rows), tuple(range(len(rows))))
        with self.autocast():
            check_head(self.model, micro, pad_id=self.pad_id, head=self.head)
            if scoring is not None:
                form = usable_scoring(self.model, scoring, self.head)
                check_scoring(self.model, micro, self.refusals, pad_id=self.pad_id, scoring=form, head=self.head)


@dataclass(frozen=True, kw_only=True)
class About:
    """What the catalogue says of a defence."""

    summary: str
    paper: str
    """arXiv id or venue; "" where it is ours or everybody's."""
    forwards: float
    backwards: float
    """Passes per optimiser step, in units of one pass over one batch."""
    extra_memory: str
    status: str = "equation-tested"


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """A defence without options."""


class Defence:
    """Base of every defence. Its defaults do nothing, so that a file shows only what its paper adds."""

    stage: ClassVar[Stage]
    about: ClassVar[About]
    options: ClassVar[type] = NoOptions
    needs: tuple[Role, ...] = ()
    """Roles of which a batch is wanted at every step, besides the stage's main role."""
    start_needs: tuple[Role, ...] = ()
    """Roles whose rows it reads as a whole, at the start or now and then, and of which no batch is wanted at a step."""
    prepare_needs: ClassVar[tuple[Role, ...]] = ()
    """Roles whose records ``prepare`` reads, and of which no batch is wanted at each step."""
    needs_refusals: ClassVar[bool] = False
    needs_base: bool = False
    """Whether it compares with the model before its alignment (``StepContext.before_alignment``)."""
    neutral: ClassVar[Mapping[str, Any] | None] = None
    """Options at which it is plain SFT, bit for bit; None where there are none (the file says why)."""
    batch_exact: ClassVar[bool] = True
    """Whether a step is the same however it is cut into micro-batches and ranks."""
    twin_passes: ClassVar[bool] = False
    """Whether it compares passes that differ by a small perturbation. Dropout, or the rounding of bf16, would be
    most of the difference: the first is refused, and the second is off unless the user turns it on."""

    deployment: Deployment = Deployment()
    """How the trained model must be prompted; a defence that plants a trigger sets its own."""

    def prepare(self, data: TrainingData) -> TrainingData:
        """Change the rows before they are tokenised: mix, rewrite, sample."""
        return data

    def check(self, context: StepContext) -> None:
        """Compare shortcuts with the plain path; called at the start of a run and when it is resumed."""
        context.check()

    def rows_per_step(self, role: Role, step_size: int) -> int:
        """How many rows of a further role each step has; by default as many as of the main role."""
        return step_size

    def start(self, context: StepContext) -> None:
        """Make what lasts: anchors, data weights, scores. Not called on resume: ``load_state`` is."""

    def step(self, context: StepContext, batches: Mapping[str, StepBatch]) -> StepResult:
        """The update direction of one optimiser step. Leaves no trace on the model."""
        raise AssertionError(f"{type(self).__name__} defines no step")

    def after_update(self, context: StepContext) -> None:
        """Called once the optimiser has moved the weights."""

    def finish(self, context: StepContext) -> None:
        """Called at the end of training, before the model is saved."""

    def repair(self, context: StepContext) -> None:
        """Post stage only: mend the weights of a fine-tuned model in place."""
        raise AssertionError(f"{type(self).__name__} repairs nothing")

    def state(self) -> dict[str, Tensor]:
        """What must survive a kill; saved with every checkpoint."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what ``state`` gave."""


def plain_step(context: StepContext, batches: Mapping[str, StepBatch], role: Role) -> StepResult:
    """One step of plain SFT on the rows of ``role``: the gradient of the token mean, every row's weight 1."""
    sweep = context.gradient("token_mean_nll", batches[role])
    return StepResult(sweep.gradients, sweep.loss, rows=RowRecord(torch.ones_like(sweep.weights)))
