"""Adam over a few tensors that no optimiser of the trainer knows: data weights, a scorer, a second set of weights.

    m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2
    w <- w - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

Moments are made at the first step, in the gradient's dtype; they are saved with a run. No weight decay.

Source: Kingma and Ba, Adam, ICLR 2015, https://arxiv.org/abs/1412.6980, Algorithm 1.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Adam:
    """State and update of Adam for one list of tensors."""

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        self.betas, self.eps = betas, eps
        self.t = 0
        self.m: list[Tensor] = []
        self.v: list[Tensor] = []

    @torch.no_grad()
    def update(self, weights: Sequence[Tensor], gradients: Sequence[Tensor], lr: float) -> None:
        """Make one step, in place."""
        if not self.m:
            self.m, self.v = [torch.zeros_like(g) for g in gradients], [torch.zeros_like(g) for g in gradients]
        self.t += 1
        b1, b2 = self.betas
        for w, g, m, v in zip(weights, gradients, self.m, self.v, strict=True):
            m.mul_(b1).add_(g, alpha=1 - b1)
            v.mul_(b2).addcmul_(g, g, value=1 - b2)
            w.addcdiv_(m / (1 - b1**self.t), (v / (1 - b2**self.t)).sqrt_().add_(self.eps), value=-lr)

    def state(self, name: str) -> dict[str, Tensor]:
        """``name.t``, ``name.m.0``, ``name.v.0``, ...: as saved with a checkpoint."""
        moments = {f"{name}.m.{i}": m.cpu() for i, m in enumerate(self.m)}
        return {f"{name}.t": torch.tensor(self.t)} | moments | {f"{name}.v.{i}": v.cpu() for i, v in enumerate(self.v)}

    def load_state(self, state: Mapping[str, Tensor], name: str) -> None:
        """Restore what ``state`` returned."""
        self.t = int(state[f"{name}.t"])
        num = sum(key.startswith(f"{name}.m.") for key in state)
        self.m = [state[f"{name}.m.{i}"].clone() for i in range(num)]
        self.v = [state[f"{name}.v.{i}"].clone() for i in range(num)]
