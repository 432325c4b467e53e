"""T-Vaccine: Vaccine on a few layers, drawn at each step in favour of those that harmful data pull most; others rest.

    every K steps:  s_l = | d h / d e_l |,   p_l = s_l / sum_k s_k
    every J steps:  S = gamma layers drawn without replacement with probabilities p
    each step:      eps_l = rho * g_l / N for l in S,  g_l = d f / d e_l,  N = sqrt(sum_{l in S} |g_l|^2)
                    update = grad f(w; e + eps) for the weights of layers in S; the other layers are frozen

    f     alignment loss: prompts with their own completion (refusals, and benign rows)    [nats per token]
    h     harmful loss: harmful prompts with harmful completions                           [nats per token]
    e_l   output of the l-th self-attention, as in Vaccine

Two forward and two backward passes; every K steps one more of each, which keeps a hidden state of all L layers. The
first backward stops at the lowest layer of S. So does the second if an adapter is trained, unless ``freeze`` is
"attention"; otherwise weights below it train too: the embeddings, or the feed-forward weights of resting layers.

Reference: G. Liu, W. Lin, T. Huang, R. Mo, Q. Mu, L. Shen, "Targeted Vaccine: Safety Alignment for Large Language
Models against Harmful Fine-Tuning via Layer-wise Perturbation", https://arxiv.org/abs/2410.09760.
Departures from the release: layers are drawn at each step and frozen whole, as the paper has it; scored on a
whole batch (there on one row); norms belong to the optimiser step, over its micro-batches and ranks. A layer that rests
has no gradient at all, so that neither momentum nor weight decay moves it. Weights outside the layers always train.

The release draws every 20 steps (``every``) and freezes attention adapters alone. Its feed-forward adapters would all
train if it did not use reentrant checkpointing for the resting layers, which gives no gradient to a layer whose input
needs none: every layer below the lowest one that is not checkpointed rests as a whole (``freeze="release"``). The
layers of S and, in models of more than 26 layers, the one before each of them are not checkpointed. It trains adapters
only; with full weights ``freeze="release"`` is the same rule, without a release to compare it with.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...models.layout import attention_of, decoder_layers
from ...training.defence import About, Defence
from ...training.drift import hidden_gradients, norms, shifted_gradient, worst_shift
from ...training.step import Batches, StepContext, StepResult


@dataclass(frozen=True, kw_only=True)
class TVaccineConfig:
    """Hyperparameters."""

    rho: float = 3.0
    """Length of the shift, shared by the layers of S. Release, README: rho = 3."""
    gamma: int = 8
    """Layers in S. Scripts: 8 of 32, 5 for Qwen2."""
    score_every: int = 200
    """K, in optimiser steps. Release: 200."""
    every: int = 1
    """J, in optimiser steps. Paper: a draw at every step; release: 20."""
    freeze: Literal["layers", "attention", "release"] = "layers"
    """The weights that rest outside S. "layers": all of a layer, the paper. "release": as in the release's run,
    attention alone above the lowest layer of S and all of a layer below. "attention": attention alone, everywhere."""

    def __post_init__(self) -> None:
        if not 0 <= self.rho < float("inf"):
            raise ConfigError(f"t-vaccine.rho is {self.rho}: must be a finite length, 0 or more.")
        for name in ("gamma", "score_every", "every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"t-vaccine.{name} is {getattr(self, name)}: must be 1 or more.")


def layer_probabilities(scores: Tensor) -> Tensor:
    """p_l = s_l / sum s: [L], float64. A layer without any pull has a probability of 1e-12, so that S can be filled."""
    return (scores / scores.sum().clamp(min=1e-30)).clamp(min=1e-12)


def drawn_layers(probabilities: Tensor, gamma: int, *, seed: int, draw: int) -> list[int]:
    """Draw S, in ascending order: ``gamma`` layers without replacement, a function of (seed, draw) and p alone."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + draw) % 2**63)
    return sorted(torch.multinomial(probabilities.cpu(), gamma, replacement=False, generator=generator).tolist())


def lowest_trained(drawn: Sequence[int], num_layers: int) -> int:
    """The lowest layer that the release trains any weight of.

    It is the lowest of S, or the one below in a model of more than 26 layers, where the release leaves that one out of
    its checkpointing too.
    """
    return max(min(drawn) - (num_layers > 26), 0)


@contextmanager
def resting(context: StepContext, weights: list[nn.Parameter]) -> Iterator[None]:
    """Neither compute nor keep gradients for these trainable weights inside."""
    everything, asleep = context.parameters, {id(p) for p in weights}
    try:
        context.parameters = [p for p in everything if id(p) not in asleep]
        for p in weights:
            p.requires_grad_(False)
        yield
    finally:
        context.parameters = everything
        for p in weights:
            p.requires_grad_(True)


class TVaccine(Defence):
    """Defence that binds scoring, draw and Vaccine's two passes to the batches of an optimiser step."""

    stage = Stage.ALIGNMENT
    about = About(
        summary="vaccine on the layers that harmful data pull most",
        paper="2410.09760",
        forwards=2.005,
        backwards=2.005,
        extra_memory="1 hidden state per drawn layer and row of the step; one of every layer in steps that score",
    )
    options = TVaccineConfig
    batches = (Role.HARMFUL,)
    twin_passes = True
    neutral = {"rho": 0.0, "gamma": 2}  # in a model of two layers: all are drawn, none rests

    def __init__(self, config: TVaccineConfig) -> None:
        self.config = config
        self.probabilities: Tensor | None = None  # [L], float64
        self.drawn: list[int] = []  # S

    def check(self, context: StepContext) -> None:
        """Check as every defence does, and refuse to draw more layers than there are."""
        super().check(context)
        num_layers = len(decoder_layers(context.model))
        if self.config.gamma > num_layers:
            raise ConfigError(
                f"t-vaccine.gamma is {self.config.gamma}, and the model has {num_layers} layers to draw from. "
                f"Set it to {num_layers} or less; the paper draws a quarter."
            )

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, as in the head of this file."""
        config, layers, batch = self.config, decoder_layers(context.model), batches[Role.ALIGNMENT]
        attentions = [attention_of(layer) for layer in layers]
        if self.probabilities is None or context.step % config.score_every == 0:
            scores = norms(context, hidden_gradients(context, batches[Role.HARMFUL], attentions))
            self.probabilities = layer_probabilities(scores)
        if not self.drawn or context.step % config.every == 0:
            draw = context.step // config.every
            self.drawn = drawn_layers(self.probabilities, config.gamma, seed=context.seed, draw=draw)
        whole = {"layers": len(layers), "attention": 0, "release": lowest_trained(self.drawn, len(layers))}
        trainable = {id(p) for p in context.parameters}
        weights = [
            p
            for index, layer in enumerate(layers)
            if index not in self.drawn
            for p in (layer if index < whole[config.freeze] else attention_of(layer)).parameters()
            if id(p) in trainable
        ]
        modules = [attentions[index] for index in self.drawn]
        with resting(context, weights):
            gammas = hidden_gradients(context, batch, modules)
            norm = norms(context, gammas).norm()
            for i in range(len(gammas)):  # in place, as in Vaccine
                gammas[i : i + 1] = worst_shift(gammas[i : i + 1], norm, config.rho)
            sweep = shifted_gradient(context, batch, modules, gammas)
        ids = {id(p) for p in weights}
        frozen = frozenset(index for index, p in enumerate(context.parameters) if id(p) in ids)
        found = iter(sweep.gradients)
        gradients = [torch.zeros_like(p) if i in frozen else next(found) for i, p in enumerate(context.parameters)]
        return StepResult(gradients, sweep.loss, {"hidden_gradient_norm": float(norm)}, frozen=frozen)

    def state(self) -> dict[str, Tensor]:
        """The layers' probabilities, and the layers drawn."""
        if self.probabilities is None:
            return {}
        return {"probabilities": self.probabilities.cpu(), "drawn": torch.tensor(self.drawn)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        if "probabilities" in state:
            self.probabilities, self.drawn = state["probabilities"], state["drawn"].tolist()
