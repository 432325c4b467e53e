"""A short run beside the user's: the weights after a few steps on other rows, and the model as it was."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from ..data.records import TokenizedRow
from ..likelihood.ranks import num_ranks
from ..primitives.adam import Adam
from ..primitives.perturb import replaced_weights
from ..primitives.snapshots import snapshot
from .batches import Grid, RoleStream
from .step import RowLoss, StepContext


def short_run(
    context: StepContext,
    rows: Sequence[TokenizedRow],
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    name: str,
    loss: RowLoss | Literal["token_mean_nll", "sequence_mean_nll"] = "token_mean_nll",
    start: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Train the model's trainable weights on ``rows`` for a few steps of Adam; the model itself ends as it began.

    A step's rows depend on seed, name and its number alone, however they are cut into forward passes and ranks. The
    gradient is not clipped, and the learning rate is constant.

    Args:
        context: The run.
        rows: The rows to train on, shuffled at each pass over them; at least one.
        num_steps: How many steps.
        batch_size: Rows of a step, over all ranks.
        learning_rate: Adam's.
        name: Names this run among those of the same seed, so that their orders differ.
        loss: A function that gives each row's terms, or the name of a mean; see ``StepContext.gradient``.
        start: The weights to begin with; by default the model's own.

    Returns:
        Copies of the weights after the last step.
    """
    grid = Grid(min(context.batch_size, batch_size), num_ranks=num_ranks(), rank=context.rank)
    stream, optimiser = RoleStream(name, rows, grid, context.seed, batch_size), Adam()
    was_training = context.model.training
    context.model.train()
    try:
        with replaced_weights(context.parameters, context.parameters if start is None else start):
            for number in range(num_steps):
                gradients = context.gradient(loss, stream.at(number)).gradients
                optimiser.update(context.parameters, gradients, learning_rate)
            return snapshot(context.parameters)
    finally:
        context.model.train(was_training)
