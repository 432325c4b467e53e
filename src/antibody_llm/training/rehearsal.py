"""Rehearsal: a share rho of every step is the provider's own rows (role ``alignment``), with weight rho.

update = (1 - rho) g_user + rho g_rehearsal
"""

from ..data.roles import Role
from ..errors import ConfigError
from ..primitives.gradients import Gradients, combined
from .step import Batches, StepContext


def check_rehearsal(name: str, rho: float) -> None:
    """Refuse a share that no step can have.

    Args:
        name: The defence.
        rho: The option ``rehearsal``.
    """
    if not 0 <= rho < 1:
        raise ConfigError(f"{name}.rehearsal is {rho}: a share of the step, 0 to below 1.")


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
