"""How a gradient changes along itself: two gradients instead of a second derivative."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import nn

from .gradients import Gradients, difference, scaled, unit
from .perturb import perturbed_weights


class Secant(NamedTuple):
    """What ``secant`` found.

    Attributes:
        difference: D = g(w) - g(w + s * direction).
        direction: g(w) / |g(w)|, one norm over all trainable weights.
    """

    difference: Gradients
    direction: Gradients


def secant(params: Sequence[nn.Parameter], gradient: Callable[[], Gradients], s: float) -> Secant:
    """D = g(w) - g(w + s g/|g|), both gradients on the same rows: to first order -s * grad |g|.

    A negative ``s`` is a step of descent (Booster: -alpha), a positive one of ascent (Panacea: +rho).

    Args:
        params: Trainable weights, moved for the second gradient and restored bitwise, also when it raises.
        gradient: The gradient at the weights as they are when it is called; called twice.
        s: Length of the step: L2 norm over all trainable weights together.

    Source: the regulariser of Booster (2409.01586) without its Hessian term, which is O(s^2) against O(s).
    """
    here = gradient()
    direction = unit(here)
    with perturbed_weights(params, scaled(direction, s)):
        there = gradient()
    return Secant(difference(here, there), direction)
