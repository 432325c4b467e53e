"""Buffer and reinforce: let the user train a model that complies already, take the compliance away, put refusing in.

    1. buffer     D_b = what a short run on harmful rows adds to the model                          before the user
       reinforce  D_r = what a short run on refusals adds to the model with D_b                     before the user
    2. user       D_u: train on CE(upload) with D_b added to the model and held fixed
    3. merge      W + D_u + (I - Q Q') D_r,    Q an orthonormal basis of D_u's columns              D_b is dropped

    D   a change of each layer's matrix: with LoRA scaling * (B A - B_0 A_0), else W - W_0
    CE  token-mean NLL, nats

Harmful rows are likely under the buffered model, so that they have hardly any gradient; the task's rows keep theirs. No
safety row is read while the user trains. The part of D_r outside D_u's columns reinforces refusing and adds nothing in
the directions that the user's layers write to. Harm that the buffer does not know is learnt as ever.

With LoRA the merged adapter has twice the rank. Where the adapter given holds an alignment, B_0 A_0, Q spans the
columns of B and B_0, and what is added is (I - Q Q') B_r A_r. Without LoRA Q has the ``rank`` strongest directions of
D_u, which as a whole would leave nothing outside.

Reference: Jailbreak to Protect: Buffering and Reinforcing via Temporary Jailbreaking for Safe Fine-Tuning in Large
Language Models, ICML 2026, https://arxiv.org/abs/2605.24550, from its abstract: three adapters, and a merge by QR that
leaves the user's column space alone. The lengths of the short runs, the form of the merge and everything without LoRA
are ours; a basis by singular values replaces QR (primitives/subspace.py). A step is one forward and one backward.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...models.lora_factors import LoraFactors, lora_factors, products_added, widen
from ...primitives.gradients import difference
from ...primitives.perturb import perturbed_weights
from ...primitives.snapshots import from_state, snapshot, snapshot_state
from ...primitives.subspace import column_space, outside
from ...training.defence import About, Defence
from ...training.preparation import TrainingData
from ...training.short_run import short_run
from ...training.step import Batches, StepContext, StepResult


@dataclass(frozen=True, kw_only=True)
class BufferAndReinforceConfig:
    """Hyperparameters; the paper's were not seen, so these are ours."""

    num_buffer_steps: int = 100
    """Steps on harmful rows. 0: no buffer."""
    num_reinforce_steps: int = 100
    """Steps on refusals under the buffer. 0: nothing is merged."""
    batch_size: int = 16
    """Rows of a step of the short runs."""
    learning_rate: float = 1e-4
    """Learning rate of the short runs (Adam)."""
    rank: int = 32
    """Without LoRA: directions of the user's change of each matrix that the merge leaves alone."""

    def __post_init__(self) -> None:
        for name in ("num_buffer_steps", "num_reinforce_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"buffer-and-reinforce.{name} is {getattr(self, name)}: a number of steps is 0 or more."
                )
        for name in ("batch_size", "rank"):
            if getattr(self, name) < 1:
                raise ConfigError(f"buffer-and-reinforce.{name} is {getattr(self, name)}: must be 1 or more.")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(
                f"buffer-and-reinforce.learning_rate is {self.learning_rate}: must be a finite number above 0."
            )


class BufferAndReinforce(Defence):
    """Defence that binds both short runs to a buffered user run and the merge after it."""

    config: BufferAndReinforceConfig
    stage = Stage.FINETUNING
    about = About(
        summary="a removable part complies while the user trains; a part that refuses is merged in afterwards",
        paper="2605.24550",
        forwards=1,
        backwards=1,
        extra_memory="3 copies of the trainable weights",
    )
    options = BufferAndReinforceConfig
    reads_at_start = (Role.HARMFUL, Role.ALIGNMENT)
    neutral = {"num_buffer_steps": 0, "num_reinforce_steps": 0}
    whole_weights = "the columns that an update spans and the products of an adapter's factors"

    def __init__(self, config: BufferAndReinforceConfig) -> None:
        self.config = config
        self.begun: list[Tensor] = []  # w_0
        self.buffer: list[Tensor] = []  # w_0 after harmful rows
        self.reinforced: list[Tensor] = []  # w_0 after refusals under the buffer, less the buffer

    def prepare(self, data: TrainingData) -> TrainingData:
        """Keep the provider's rows that refuse.

        Raises:
            DataError: no row refuses.
        """
        if self.config.num_reinforce_steps == 0:
            return data
        return data.with_records(Role.ALIGNMENT, data.refusals("buffer-and-reinforce"))

    def start(self, context: StepContext) -> None:
        """Make the buffer, and under it what reinforces."""
        config = self.config
        self.begun = snapshot(context.parameters)
        if config.num_buffer_steps:
            self.buffer = self._run(context, Role.HARMFUL, config.num_buffer_steps)
        if config.num_reinforce_steps:
            with self._buffered(context):
                trained = self._run(context, Role.ALIGNMENT, config.num_reinforce_steps)
            self.reinforced = trained if lora_factors(context.model) else self._less_buffer(trained)

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Plain SFT of the buffered model."""
        with self._buffered(context):
            return super().step(context, batches)

    @torch.no_grad()
    def finish(self, context: StepContext) -> None:
        """Merge what reinforces; the buffer was never in the weights."""
        if not self.reinforced:
            return
        place = {id(p): i for i, p in enumerate(context.parameters)}
        products = []
        for of in lora_factors(context.model):
            a, b = place[id(of.a)], place[id(of.b)]
            taken = column_space(torch.cat([of.b, self.begun[b]], dim=1))
            products.append((self.reinforced[a], outside(self.reinforced[b], taken)))
        if products:
            widen(context.model, products)
            return
        for p, begun, reinforced in zip(context.parameters, self.begun, self.reinforced, strict=True):
            taken = column_space(_matrix(p - begun), self.config.rank)
            p.add_(outside(_matrix(reinforced - begun), taken).view_as(p))

    @contextmanager
    def _buffered(self, context: StepContext) -> Iterator[None]:
        """Inside, the model has D_b added."""
        if not self.buffer:
            yield
            return
        factors = lora_factors(context.model)
        if factors:
            with products_added(factors, self._products(context, factors)):
                yield
        else:
            with perturbed_weights(context.parameters, difference(self.buffer, self.begun)):
                yield

    def _products(self, context: StepContext, factors: Sequence[LoraFactors]) -> list[list[tuple[Tensor, Tensor]]]:
        """B_1 A_1 - B_0 A_0 of each layer, as two products."""
        place = {id(p): i for i, p in enumerate(context.parameters)}
        products = []
        for of in factors:
            a, b = place[id(of.a)], place[id(of.b)]
            products.append([(self.buffer[a], self.buffer[b]), (self.begun[a], -self.begun[b])])
        return products

    def _less_buffer(self, weights: Sequence[Tensor]) -> list[Tensor]:
        if not self.buffer:
            return list(weights)
        return difference(weights, difference(self.buffer, self.begun))

    def _run(self, context: StepContext, role: Role, num_steps: int) -> list[Tensor]:
        rows = context.rows[role]
        return short_run(
            context,
            rows,
            num_steps=num_steps,
            batch_size=min(self.config.batch_size, len(rows)),
            learning_rate=self.config.learning_rate,
            name=f"buffer-and-reinforce.{role}",
        )

    def state(self) -> dict[str, Tensor]:
        """All three sets of weights."""
        sets = {"begun": self.begun, "buffer": self.buffer, "reinforced": self.reinforced}
        return {key: t for name, of_name in sets.items() for key, t in snapshot_state(of_name, name).items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self.begun, self.buffer, self.reinforced = (
            from_state(state, name) for name in ("begun", "buffer", "reinforced")
        )


def _matrix(weight: Tensor) -> Tensor:
    """A weight as a matrix of its outputs; a vector is a column."""
    return weight.reshape(weight.shape[0], -1)
