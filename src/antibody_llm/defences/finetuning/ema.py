"""EMA: an exponential average of the weights keeps what plain fine-tuning would forget.

    v_t = eta v_{t-1} + (1 - eta) w_t,   v_0 = w_0;  deploy v_T              "shadow"
    w_t <- eta w_{t-1} + (1 - eta) w_t                                        "feedback"
    w_t <- eta w_0 + (1 - eta) w_t       every ``every`` steps                "anchored"

    w_t   weights after optimiser step t (of T) of plain SFT on the upload      eta   decay, 0 to 1

In closed form v_T = eta^T w_0 + (1 - eta) sum_k eta^(T-k) w_k. If T is a few hundred, a decay such as 0.995 keeps
much of w_0, and at T = 2000 almost nothing; so eta is given by its half-life as a share f of the run:
eta = 2^(-1 / (f T)), and w_0's share of v_T is 2^(-1/f) at any T.

"feedback" is plain SFT with every update scaled by 1 - eta, up to rounding (the optimiser's state does not see it): a
lower learning rate, to be compared with SFT at the matched rate. "anchored" is a pull to the aligned model.
With LoRA the factors are averaged, not their product.

Averages are computed in float32. Trained weights in half precision cannot hold them: there an update of (1 - eta) is
mostly less than half the distance between two numbers. So the averages of "shadow" and "feedback" are kept in float32
beside the weights, which "feedback" sets to the rounded average; the rounding error is not part of the next update.
"anchored" has no such copy: train float32 weights with it, as all our runs do.

Reference: Rethinking Safety in LLM Fine-tuning: An Optimization Perspective. M. Kim, J. M. Kwak, L. Alssum, B. Ghanem,
P. Torr, D. Krueger, F. Barez, A. Bibi. COLM 2025, https://arxiv.org/abs/2508.12531. Neither its code nor its exact
recursion and decay were available to us: the three readings are named, "shadow" is the default, and the half-life is
ours. Checkpoints of a "shadow" run hold the raw weights; the average replaces them when training ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...data.roles import Stage
from ...errors import ConfigError
from ...primitives.snapshots import from_state, snapshot, snapshot_state
from ...training.defence import About, Defence
from ...training.step import StepContext


@dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """Hyperparameters. The paper's decay was not available; these are ours."""

    variant: Literal["shadow", "feedback", "anchored"] = "shadow"
    """The recursion, as in the head of this file."""
    half_life: float = 0.2
    """f: the steps after which a weight counts half, as a share of the run. 0 is plain SFT; infinite keeps w_0."""
    every: int = 1
    """"anchored": steps between two pulls."""

    def __post_init__(self) -> None:
        if not self.half_life >= 0:
            raise ConfigError(f"ema.half_life is {self.half_life}: a share of the run is 0 or more.")
        if self.every < 1:
            raise ConfigError(f"ema.every is {self.every}: must be 1 or more.")


def decay(half_life: float, num_steps: int) -> float:
    """eta = 2^(-1 / (f T)); 0 for a half-life of 0."""
    return 2.0 ** (-1.0 / (half_life * num_steps)) if half_life else 0.0


@torch.no_grad()
def average_into(target: Sequence[Tensor], old: Sequence[Tensor], new: Sequence[Tensor], eta: float) -> None:
    """Set ``target <- eta old + (1 - eta) new``, computed in float32 or better and rounded to target's dtype."""
    for t, a, b in zip(target, old, new, strict=True):
        t.copy_(eta * widened(a) + (1.0 - eta) * widened(b))


@torch.no_grad()
def fed_back(weights: Sequence[Tensor], kept: Sequence[Tensor], eta: float) -> None:
    """Add 1 - eta of the weights' latest update to ``kept``, and set the weights to ``kept``, rounded."""
    for w, v in zip(weights, kept, strict=True):
        lost = v - v.to(w.dtype)  # the update began at the rounded v; exactly 0 where nothing is rounded
        average_into([v], [v], [w + lost], eta)
        w.copy_(v)


def widened(x: Tensor) -> Tensor:
    """The tensor in float32, or as it is if that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class EMA(Defence):
    """Defence that averages after every update; each step is plain SFT."""

    stage = Stage.FINETUNING
    about = About(
        summary="exponential average of the weights over the run",
        paper="2508.12531",
        forwards=1,
        backwards=1,
        extra_memory="1 copy of the trainable weights, float32",
    )
    options = EMAConfig
    neutral = {"half_life": 0.0}

    def __init__(self, config: EMAConfig) -> None:
        self.config = config
        self._kept: list[Tensor] = []
        """v_t ("shadow"), w_{t-1} before it was rounded ("feedback"), both float32, or w_0 ("anchored")."""

    def start(self, context: StepContext) -> None:
        """v_0 = w_0."""
        self._kept = snapshot(context.parameters)
        if self.config.variant != "anchored":
            self._kept = [widened(kept) for kept in self._kept]

    def after_update(self, context: StepContext) -> None:
        """Apply the recursion in the head of this file."""
        eta, w, variant = decay(self.config.half_life, context.max_steps), context.parameters, self.config.variant
        if variant == "shadow":
            average_into(self._kept, self._kept, w, eta)
        elif variant == "feedback":
            fed_back(w, self._kept, eta)
        elif (context.step + 1) % self.config.every == 0:
            average_into(w, self._kept, w, eta)

    def finish(self, context: StepContext) -> None:
        """Deploy v_T."""
        if self.config.variant == "shadow":
            with torch.no_grad():
                for p, v in zip(context.parameters, self._kept, strict=True):
                    p.copy_(v)

    def state(self) -> dict[str, Tensor]:
        """The weights that the recursion reads."""
        return snapshot_state(self._kept, "anchor")

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self._kept = from_state(state, "anchor")
