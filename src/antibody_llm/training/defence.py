"""A defence: a class that declares what it needs, and defines what its paper adds to plain fine-tuning."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..data.encode import Renderer
from ..data.records import Record, TokenizedRow
from ..data.roles import MAIN_ROLE, Role, Stage
from ..errors import ConfigError
from ..likelihood.reader import ModelReader
from ..models.deployment import Deployment
from ..screening.anchors import Anchors
from .preparation import TrainingData
from .step import Batches, RowRecord, StepContext, StepResult


@dataclass(frozen=True, kw_only=True)
class About:
    """A defence's entry in the catalogue."""

    summary: str
    paper: str
    """arXiv id or venue; "" where it is ours or common knowledge."""
    forwards: float
    backwards: float
    """Passes per optimiser step, in units of one pass over one batch."""
    extra_memory: str
    revision: int = 0
    """Raised where the same options come to other numbers, so that cells of `antibody bench` and jobs of `antibody
    audit train` that were stored before are measured again."""


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """A defence without options."""


class Defence:
    """Base of every defence that trains: plain fine-tuning, so that a file shows only what its paper adds.

    Args:
        config: The options, an object of the class ``options``.
    """

    stage: ClassVar[Stage]
    about: ClassVar[About]
    options: ClassVar[type] = NoOptions
    batches: tuple[Role, ...] = ()
    """Roles that every step has a batch of, besides the stage's main role."""
    reads_at_start: tuple[Role, ...] = ()
    """Roles whose rows it reads as a whole, in ``start`` or later (``context.rows``); a step has no batch of them."""
    reads_to_prepare: ClassVar[tuple[Role, ...]] = ()
    """Roles whose records ``prepare`` reads; they are not tokenised, and a step has no batch of them."""
    needs_refusals: ClassVar[bool] = False
    """Whether rows are scored against generic refusals (``context.refusals``)."""
    needs_base: bool = False
    """Whether it compares the model with the one before its alignment (``context.before_alignment``)."""
    needs_anchors: bool = False
    """Whether it reads the labelled rows that were stored with the aligned model (``context.anchors``)."""
    reads_evidence_apart: ClassVar[bool] = False
    """Whether all that it compares with the anchors comes from ``context.evidence_reader`` (of pairs: from ``reader``):
    it can then go on from a fine-tuned model, beside which the aligned model is loaded."""
    neutral: ClassVar[Mapping[str, Any] | None] = None
    """Options at which it is plain SFT, bit for bit; None if there are none (the file says why)."""
    scores_harm: ClassVar[bool] = False
    """Whether a row's score in samples.parquet is evidence of harm, higher where harm is likelier."""
    batch_exact: ClassVar[bool] = True
    """Whether a step is the same however it is cut into micro-batches and ranks."""
    twin_passes: ClassVar[bool] = False
    """Whether it compares passes that differ by a small perturbation. Dropout or the rounding of bf16 would be most
    of that difference: dropout is refused, and bf16 is off unless the user turns it on."""

    whole_weights: str | None = None
    """What it computes from whole weights, of which no rank of a sharded model has one; None if parts will do."""

    config: Any
    deployment: Deployment = Deployment()
    """How the trained model must be prompted; a defence that plants a trigger sets its own."""

    def __init__(self, config: Any = None) -> None:
        self.config = config

    def prepare(self, data: TrainingData) -> TrainingData:
        """Change the rows before they are tokenised: mix, rewrite, sample."""
        return data

    def check(self, context: StepContext) -> None:
        """Compare shortcuts with the plain path; called at the start of a run and when it is resumed.

        Raises:
            ConfigError: the model is sharded, and the defence needs whole weights.
        """
        if context.sharded and self.whole_weights is not None:
            raise ConfigError(
                f"{type(self).__name__} computes {self.whole_weights} from whole weights, and under FSDP every rank "
                "has a part of each. Train with DDP or on one device; an adapter takes less memory."
            )
        context.check()

    def rows_per_step(self, role: Role, step_size: int) -> int:
        """How many rows of a further role each step has; by default as many as of the main role."""
        return step_size

    def start(self, context: StepContext) -> None:
        """Make what outlives a step: snapshots, data weights, scores. A resumed run calls ``load_state`` instead."""

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Compute the update direction of one optimiser step, and leave the model as it was.

        The default is plain SFT: the gradient of the token mean over the main role's rows, every row's weight 1.
        """
        sweep = context.gradient("token_mean_nll", batches[MAIN_ROLE[self.stage]])
        return StepResult(sweep.gradients, sweep.loss, rows=RowRecord(torch.ones_like(sweep.weights)))

    def after_update(self, context: StepContext) -> None:
        """Act once the optimiser has moved the weights."""

    def finish(self, context: StepContext) -> None:
        """Act at the end of training, before the model is saved."""

    def state(self) -> dict[str, Tensor]:
        """The tensors that a resumed run needs; every checkpoint holds them."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned; the tensors are on the model's device."""


class PairDefence(Defence):
    """Base of every defence of training on pairs (preference.py), whose step is DPO's: it chooses among the pairs."""

    stage = Stage.FINETUNING

    def left_out(
        self,
        reader: ModelReader,
        anchors: Anchors | None,
        renderer: Renderer,
        records: Sequence[Record],
        rows: Sequence[TokenizedRow],
    ) -> list[int]:
        """The ids of the pairs that are not trained on; read once, before training.

        Args:
            reader: The aligned model, and the one before its alignment if ``needs_base``.
            anchors: The labelled rows stored with the model, if ``needs_anchors``.
            renderer: Makes tokens of a row.
            records: Each pair's prompt with its preferred answer.
            rows: Those records as tokens.
        """
        return []


class Repair(ABC):
    """Base of every defence of the post stage: it changes the weights of a fine-tuned model, once.

    Args:
        config: The options, an object of the class ``options``.
    """

    stage: ClassVar[Stage] = Stage.POST
    about: ClassVar[About]
    options: ClassVar[type] = NoOptions
    reads: tuple[Role, ...] = ()
    """Roles whose rows it reads."""
    needs_aligned: bool = False
    """Whether it compares with the model that fine-tuning started from (``reader.before_finetuning``)."""
    needs_base: bool = False
    """Whether it compares with the model before its alignment (``reader.before_alignment``)."""
    merges: ClassVar[bool] = False
    """Whether an adapter is merged into the model first, because what it does to the weights fits no adapter."""
    small_steps: ClassVar[bool] = False
    """Whether it moves weights by less than the rounding of bf16, so that they are loaded in float32."""
    neutral: ClassVar[Mapping[str, Any] | None] = None
    """Options at which it changes nothing; None if there are none (the file says why)."""

    config: Any
    deployment: Deployment = Deployment()
    """How the repaired model must be prompted."""

    def __init__(self, config: Any = None) -> None:
        self.config = config

    def prepare(self, data: TrainingData) -> TrainingData:
        """Choose among the rows of ``reads`` before they are tokenised."""
        return data

    @abstractmethod
    def repair(self, reader: ModelReader, *, seed: int) -> None:
        """Change the model's weights in place.

        Args:
            reader: The fine-tuned model, with the rows of ``reads`` and the models that it compares with.
            seed: The run's seed.
        """


AnyDefence = Defence | Repair | type[Defence] | type[Repair]


def needed_roles(defence: AnyDefence) -> list[Role]:
    """Every role whose rows a defence needs besides the stage's main role, each once."""
    if isinstance(defence, Repair) or (isinstance(defence, type) and issubclass(defence, Repair)):
        return list(defence.reads)
    return list(dict.fromkeys((*defence.batches, *defence.reads_at_start, *defence.reads_to_prepare)))


def needs_of(defence: AnyDefence) -> list[str]:
    """Everything a defence needs besides the stage's main rows: roles, "refusals", "aligned", "base", "anchors"."""
    resources = ("refusals", "aligned", "base", "anchors")
    return [*map(str, needed_roles(defence)), *(r for r in resources if getattr(defence, f"needs_{r}", False))]
