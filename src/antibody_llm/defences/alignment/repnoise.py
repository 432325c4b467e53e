"""RepNoise: replace harmful knowledge by noise at every depth, and keep refusals.

    min_w  f(w) + beta * noise(w) - alpha * log(1 + A(w))

    noise = 1/L sum_l MMD^2( a_l . m, z . m ),    z ~ N(0, I)
    MMD^2 = mean(k_xx) + mean(k_yy) - 2 mean(k_xy),   k = sum_{i=0..4} exp(-D / (s * 2^i))
    s     = mean of D over pairs of different rows / 4, held constant;   D squared distances of rows, [2B, 2B]

    f     alignment loss: prompts with their own completion (refusals, and benign rows)    [nats per token]
    A     harmful loss read at every depth, see training/lens.py                           [nats per token]
    a_l   output of the feed-forward block of layer l on harmful rows, [B, T, d]; m its completion tokens; a row's
          T * d numbers count as one vector

Two forward and two backward passes, L unembeddings of the completion tokens, L small matrices.

Reference: D. Rosati, J. Wehner, K. Williams, L. Bartoszcze, D. Atanasov, R. Gonzales, S. Majumdar, C. Maple, H. Sajjad,
F. Rudzicz, "Representation Noising: A Defence Mechanism Against Harmful Finetuning", NeurIPS 2024,
https://arxiv.org/abs/2405.14577. Departures from the release: the mask is the completion (there the positions at which
harmful and refusing ids differ, which drops the first token that differs, counts padding, and needs a refusal of the
same length); the alignment loss is over every refusal token and over any benign rows that the provider has; D by inner
products (there all differences, [2B, 2B, T d] a layer); hooks on L modules for one pass (there on every module,
permanently). MMD compares the rows of one forward pass, and A is their mean; the harmful terms of several micro-batches
are averaged, so a step that is cut differently gives a different update.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...data.collate import IGNORED, pad
from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...likelihood.microbatch import MicroBatch
from ...models.layout import decoder_layers, mlp_of
from ...primitives.gradients import combined
from ...primitives.noise import generator_at
from ...primitives.taps import captured
from ...training.defence import About, Defence
from ...training.lens import lens_mean_nll
from ...training.step import Batches, RowTerms, StepContext, StepResult


@dataclass(frozen=True, kw_only=True)
class RepNoiseConfig:
    """Hyperparameters. Both 0 is plain SFT."""

    alpha: float = 1.0
    """Weight of the ascent at every depth. Release: 1; 0.1 in Booster's comparison."""
    beta: float = 0.001
    """Weight of the noise. Release: "beta = 0.001"."""

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ConfigError(f"repnoise.{name} is {value}: must be a finite number, 0 or more.")


def mmd(x: Tensor, y: Tensor) -> Tensor:
    """MMD^2 between the rows of ``x`` and ``y``, biased estimator, with its graph; a float32 scalar, 0 for x = y.

    Args:
        x: [B, D], any float type.
        y: [B, D].
    """
    rows = torch.cat([x.float(), y.float()])  # [2B, D]
    squares = rows.square().sum(dim=1)
    distances = (squares[:, None] + squares[None] - 2 * rows @ rows.T).clamp(min=0)
    num = len(rows)
    distances = distances * (1 - torch.eye(num, device=rows.device))  # exactly 0 between a row and itself
    width = (distances.detach().sum() / (num * num - num) / 4).clamp(min=1e-12)
    kernel = torch.stack([torch.exp(-distances / (width * 2**i)) for i in range(5)]).sum(dim=0)
    size = len(x)
    return kernel[:size, :size].mean() + kernel[size:, size:].mean() - 2 * kernel[:size, size:].mean()


def harmful_terms(context: StepContext, micro: MicroBatch, *, alpha: float, beta: float) -> tuple[RowTerms, Tensor]:
    """Terms of beta * noise - alpha * log(1 + A) of one forward pass, once for each of its rows, and [noise, A]."""
    layers = decoder_layers(context.model)
    with captured([mlp_of(layer) for layer in layers]) as activations:
        lens = lens_mean_nll(context, micro)
    labels = pad(micro.rows, context.pad_id, device=context.device)["labels"]
    mask = (labels != IGNORED)[..., None]  # [B, T, 1]
    noise = torch.zeros((), device=context.device)
    for number, activation in enumerate(activations):
        z = normal(tuple(activation.shape), context.seed, context.step, micro.positions[0], number).to(context.device)
        noise = noise + mmd((activation * mask).flatten(1), (z * mask).flatten(1)) / len(layers)
    ascent = lens.numerator.sum() / lens.denominator.sum()
    value = beta * noise - alpha * torch.log1p(ascent)
    size = len(micro.rows)
    return RowTerms(value.expand(size), torch.ones(size, device=context.device)), torch.stack([noise, ascent]).detach()


def normal(shape: tuple[int, ...], *key: int) -> Tensor:
    """Standard normal numbers that depend on ``key`` alone; float32, on the CPU."""
    return torch.randn(shape, generator=generator_at(*key))


class RepNoise(Defence):
    """Defence that binds the three terms to the batches of an optimiser step."""

    stage = Stage.ALIGNMENT
    about = About(
        summary="turn harmful representations into noise",
        paper="2405.14577",
        forwards=2,
        backwards=2,
        extra_memory="2 gradients; logits of the completion tokens at every depth",
    )
    options = RepNoiseConfig
    config: RepNoiseConfig
    batches = (Role.HARMFUL,)
    neutral = {"alpha": 0.0, "beta": 0.0}
    batch_exact = False  # MMD and the logarithm belong to one forward pass and do not add up over passes

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, as in the head of this file."""
        seen = torch.zeros(3, dtype=torch.float64, device=context.device)  # noise and A over rows, number of rows

        def harmful(micro: MicroBatch) -> RowTerms:
            terms, values = harmful_terms(context, micro, alpha=self.config.alpha, beta=self.config.beta)
            seen.add_(torch.cat([values, values.new_ones(1)]).double() * sum(micro.counted))
            return terms

        alignment = context.gradient("token_mean_nll", batches[Role.ALIGNMENT])
        pushed = context.gradient(harmful, batches[Role.HARMFUL])
        noise, ascent, num_rows = context.all_reduce(seen).tolist()
        update = combined(alignment.gradients, (1.0, pushed.gradients))
        return StepResult(update, alignment.loss, {"loss_lens": ascent / num_rows, "noise": noise / num_rows})
