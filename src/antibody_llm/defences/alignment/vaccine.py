"""Vaccine: learn refusals under the shift of hidden states that hurts them most.

    min_w  max_{|eps| <= rho}  f(w; e_1 + eps_1, .., e_L + eps_L)

    eps_l  = rho * gamma_l / N,   gamma_l = d f / d e_l,   N = sqrt(sum_l |gamma_l|^2)
    update = grad f(w; e + eps),  eps held constant

    f     alignment loss: prompts with their own completion (refusals, and benign rows)    [nats per token]
    e_l   output of the l-th self-attention, after its output projection, before the residual sum: [B, T, d]
    rho   length of (eps_1 .. eps_L): one L2 norm over layers, rows, tokens and features of the optimiser step

A user's harmful rows shift the hidden states of the provider's prompts ("harmful embedding drift"); weights found this
way withstand a shift of norm rho. Two forward and two backward passes, the first without gradients of weights.

Reference: T. Huang, S. Hu, L. Liu, "Vaccine: Perturbation-aware Alignment for Large Language Models against Harmful
Fine-tuning Attack", NeurIPS 2024, https://arxiv.org/abs/2402.01109. Departures from the release: the norm belongs to
the optimiser step (there to a micro-batch of one rank: with accumulation each has the whole rho); hooks last for one
pass and return new tensors (there they assign into the output's data); the first pass computes no gradients of weights,
which the release computes and discards. Use no dropout: both passes must compute the same function (the release's
adapter drops 10 % of its inputs, differently in each pass).
"""

from dataclasses import dataclass

from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...models.layout import attention_of, decoder_layers
from ...training.defence import About, Defence
from ...training.drift import hidden_gradients, norms, shifted_gradient, worst_shift
from ...training.step import Batches, StepContext, StepResult


@dataclass(frozen=True, kw_only=True)
class VaccineConfig:
    """Hyperparameters."""

    rho: float = 2.0
    """Length of the shift, in units of hidden states, shared by all tokens of the step; 0 is plain SFT. Release,
    README and parser: rho = 2. Booster's comparison runs it at 5."""

    def __post_init__(self) -> None:
        if not 0 <= self.rho < float("inf"):
            raise ConfigError(f"vaccine.rho is {self.rho}: must be a finite length, 0 or more.")


class Vaccine(Defence):
    """Defence that binds the two passes to the batch of an optimiser step."""

    stage = Stage.ALIGNMENT
    about = About(
        summary="refusals that withstand a shift of every attention output",
        paper="2402.01109",
        forwards=2,
        backwards=2,
        extra_memory="1 hidden state per layer and row of the step",
    )
    options = VaccineConfig
    config: VaccineConfig
    twin_passes = True
    neutral = {"rho": 0.0}

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, as in the head of this file."""
        batch = batches[Role.ALIGNMENT]
        modules = [attention_of(layer) for layer in decoder_layers(context.model)]
        gammas = hidden_gradients(context, batch, modules)  # pass 1
        norm = norms(context, gammas).norm()  # N
        for i in range(len(gammas)):  # in place: during pass 2 there is one set of hidden states, not two
            gammas[i : i + 1] = worst_shift(gammas[i : i + 1], norm, self.config.rho)
        sweep = shifted_gradient(context, batch, modules, gammas)  # pass 2
        return StepResult(sweep.gradients, sweep.loss, {"hidden_gradient_norm": float(norm)})
