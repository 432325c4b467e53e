"""Rehearsal: a share rho of every step is the provider's own rows (role ``alignment``), with weight rho.

update = (1 - rho) g_user + rho g_rehearsal

After the last step ceil(closing T) more may follow, T the steps of the run, on the provider's rows alone: as many of
them as a step has, by Adam, the learning rate falling from the run's to 0. Training on harmless rows moves the line
between what a model refuses and what it answers, too, and these steps move it back.
"""

import math

import torch

from ..data.roles import Role
from ..errors import ConfigError
from ..primitives.gradients import Gradients, combined
from .short_run import short_run
from .step import Batches, StepContext


def check_rehearsal(name: str, rho: float, closing: float) -> None:
    """Refuse shares that no run can have.

    Args:
        name: The defence.
        rho: The option ``rehearsal``.
        closing: The option ``closing``.
    """
    if not 0 <= rho < 1:
        raise ConfigError(f"{name}.rehearsal is {rho}: a share of the step, 0 to below 1.")
    if not 0 <= closing < 1:
        raise ConfigError(f"{name}.closing is {closing}: a share of the run's steps, 0 to below 1.")


def rehearsed_rows(rho: float, step_size: int) -> int:
    """The number of provider rows per step: rho / (1 - rho) of the user's rows, at least one."""
    return max(1, round(step_size * rho / (1 - rho)))


def with_rehearsal(
    context: StepContext, batches: Batches, rho: float, gradients: Gradients, loss: float
) -> tuple[Gradients, float, dict[str, float]]:
    """The update, its loss and the metrics of a step with rehearsal; ``gradients`` are used up.

    Args:
        context: The step's.
        batches: With one of the role ``alignment`` if rho is above 0.
        rho: The share; at 0 what is given is returned.
        gradients: g_user.
        loss: The user's.
    """
    if not rho:
        return gradients, loss, {}
    rehearsed = context.gradient("token_mean_nll", batches[Role.ALIGNMENT])
    update = combined([g.mul_(1 - rho) for g in gradients], (rho, rehearsed.gradients))
    total = (1 - rho) * loss + rho * rehearsed.loss
    return update, total, {"loss_user": loss, "loss_rehearsal": rehearsed.loss}


def close(context: StepContext, closing: float) -> None:
    """Take the steps that follow the last one, and leave the model with their weights.

    Args:
        context: The run's, with rows of the role ``alignment`` if closing is above 0.
        closing: Their number, as a share of the run's steps.
    """
    num_steps = math.ceil(closing * context.max_steps)
    if not num_steps:
        return
    weights = short_run(
        context,
        context.rows[Role.ALIGNMENT],
        num_steps=num_steps,
        batch_size=context.step_size,
        learning_rate=context.peak_learning_rate,
        falling=True,
        name="closing",
    )
    with torch.no_grad():
        for parameter, weight in zip(context.parameters, weights, strict=True):
            parameter.copy_(weight)
