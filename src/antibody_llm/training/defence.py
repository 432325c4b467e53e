"""What a defence is: a class that declares what it needs and defines what its paper adds to plain fine-tuning."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..data.roles import Role, Stage
from ..likelihood.microbatch import StepBatch
from ..likelihood.reader import ModelReader
from ..models.deployment import Deployment
from .preparation import TrainingData
from .step import RowRecord, StepContext, StepResult


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

    def state(self) -> dict[str, Tensor]:
        """What must survive a kill; saved with every checkpoint."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what ``state`` gave."""


class Repair(ABC):
    """Base of every defence of the post stage: it changes the weights of a fine-tuned model, once."""

    stage: ClassVar[Stage] = Stage.POST
    about: ClassVar[About]
    options: ClassVar[type] = NoOptions
    neutral: ClassVar[Mapping[str, Any] | None] = None
    """Options at which it changes nothing; None where there are none (the file says why)."""
    reads: tuple[Role, ...] = ()
    """Roles whose rows it reads."""
    deployment: Deployment = Deployment()
    """How the repaired model must be prompted."""

    @abstractmethod
    def repair(self, reader: ModelReader, *, seed: int) -> None:
        """Change the model's weights in place.

        Args:
            reader: The fine-tuned model, with the rows of ``reads``.
            seed: The run's seed.
        """


def needed_roles(defence: Defence | Repair | type[Defence] | type[Repair]) -> list[Role]:
    """Every role whose rows it wants besides the stage's main role, each once."""
    if isinstance(defence, Repair) or (isinstance(defence, type) and issubclass(defence, Repair)):
        return list(defence.reads)
    return list(dict.fromkeys((*defence.needs, *defence.start_needs, *defence.prepare_needs)))


def needs_of(defence: Defence | Repair | type[Defence] | type[Repair]) -> list[str]:
    """All that it wants besides the stage's main rows: roles, "refusals", "base"."""
    needs = [str(role) for role in needed_roles(defence)]
    if isinstance(defence, Repair) or (isinstance(defence, type) and issubclass(defence, Repair)):
        return needs
    return needs + ["refusals"] * defence.needs_refusals + ["base"] * defence.needs_base


def plain_step(context: StepContext, batches: Mapping[str, StepBatch], role: Role) -> StepResult:
    """One step of plain SFT on the rows of ``role``: the gradient of the token mean, every row's weight 1."""
    sweep = context.gradient("token_mean_nll", batches[role])
    return StepResult(sweep.gradients, sweep.loss, rows=RowRecord(torch.ones_like(sweep.weights)))
