"""What training on something is worth, given the probability that it is harm."""

from torch import Tensor


def net_worth(harm: Tensor, caution: float) -> Tensor:
    """max(0, 1 - p - c p) / (1 - p + c p): the gain of training minus its risk, as a share of what is at stake.

    Args:
        harm: p, 0 to 1.
        caution: c, how many harmless lost ones are as bad as one harmful one that is trained on.
    """
    return (1 - harm - caution * harm).clamp(min=0) / (1 - harm + caution * harm)
