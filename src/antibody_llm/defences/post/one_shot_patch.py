"""One-shot patch: a few steps on one refusal, of the weights that it depends on most.

    g   = grad l(w),    l: mean NLL of the completion tokens of ``num_pairs`` of the provider's refusals
    S   = the share ``share`` of all trainable weights with the largest |g|
    w_S <- w_S less a step of Adam along grad l(w)_S,    ``num_steps`` times; all other weights stay

    w   the weights after the user's fine-tuning: those of the adapter, if there is one

One harmful prompt with one refusal is all that it reads, drawn with the run's seed. At first a step of Adam moves every
weight equally far, so that those with the largest |g| lower l the most.

Reference: Jiawen Zhang, Lipeng He, Kejia Chen, Jian Lou, Jian Liu, Xiaohu Yang, Ruoxi Jia, Safety at One Shot: Patching
Fine-Tuned LLMs with A Single Instance, ICLR 2026, https://arxiv.org/abs/2601.01887, from its description: one pair, few
steps of Adam, the most salient weights. How salience is measured there was not seen: |g| and all defaults are ours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...data.roles import Role
from ...errors import ConfigError
from ...events import report_progress
from ...likelihood.completion import evaluating
from ...likelihood.microbatch import StepBatch
from ...likelihood.reader import ModelReader
from ...primitives.adam import Adam
from ...primitives.selection import drawn
from ...training.defence import About, Repair
from ...training.preparation import TrainingData
from ...training.step import StepContext


@dataclass(frozen=True, kw_only=True)
class OneShotPatchConfig:
    """Hyperparameters; the paper's were not seen, so these are ours."""

    num_pairs: int = 1
    """Refusals that are read."""
    share: float = 0.01
    """Share of the trainable weights that may move, above 0 and up to 1."""
    num_steps: int = 10
    """Steps of Adam. 0 changes nothing."""
    learning_rate: float = 1e-4
    """Learning rate of the steps."""

    def __post_init__(self) -> None:
        if self.num_pairs < 1:
            raise ConfigError(f"one-shot-patch.num_pairs is {self.num_pairs}: must be 1 or more.")
        if not 0 < self.share <= 1:
            raise ConfigError(f"one-shot-patch.share is {self.share}: a share above 0 and up to 1.")
        if self.num_steps < 0:
            raise ConfigError(f"one-shot-patch.num_steps is {self.num_steps}: a number of steps is 0 or more.")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"one-shot-patch.learning_rate is {self.learning_rate}: must be a finite number above 0.")


def salient(gradients: Sequence[Tensor], share: float) -> list[Tensor]:
    """S: the positions in each flattened tensor of the largest gradients of all together, at least one."""
    sizes = torch.cat([g.detach().abs().flatten() for g in gradients])
    chosen = torch.zeros(len(sizes), dtype=torch.bool, device=sizes.device)
    chosen[sizes.topk(max(1, round(share * len(sizes)))).indices] = True
    return [part.nonzero()[:, 0] for part in chosen.split([g.numel() for g in gradients])]


class OneShotPatch(Repair):
    """Repair that binds the steps to a fine-tuned model and a drawn refusal."""

    config: OneShotPatchConfig
    about = About(
        summary="a few steps on one refusal, of the weights that it depends on most",
        paper="2601.01887",
        forwards=1,  # of one row, at each of few steps
        backwards=1,
        extra_memory="a gradient and its sizes; Adam's moments of the chosen weights",
    )
    options = OneShotPatchConfig
    reads = (Role.ALIGNMENT,)
    small_steps = True
    neutral = {"num_steps": 0}

    def __init__(self, config: OneShotPatchConfig) -> None:
        self.config = config

    def prepare(self, data: TrainingData) -> TrainingData:
        """Draw among the provider's rows that refuse.

        Raises:
            DataError: fewer refuse than are to be read.
        """
        num = self.config.num_pairs
        pairs = drawn(data.refusals("one-shot-patch", num), num, seed=f"one-shot-patch.{data.seed}")
        return data.with_records(Role.ALIGNMENT, pairs)

    def repair(self, reader: ModelReader, *, seed: int) -> None:
        """Take the steps, in place; one that fails leaves the weights as they were given."""
        config = self.config
        if config.num_steps == 0:
            return
        context = StepContext(reader.model, pad_id=reader.pad_id, autocast=reader.autocast)
        batch = StepBatch.of(reader.rows[Role.ALIGNMENT], reader.batch_size)
        chosen: list[Tensor] = []
        given: list[Tensor] = []
        values: list[Tensor] = []
        optimiser = Adam()
        try:
            for number in range(config.num_steps):
                report_progress("repairing, steps", number, config.num_steps)
                with evaluating(reader.model):
                    gradients = context.gradient("token_mean_nll", batch).gradients
                if not chosen:
                    chosen = salient(gradients, config.share)
                    given = _read(context.parameters, chosen)
                    values = [value.clone() for value in given]
                slopes = [g.flatten()[at] for g, at in zip(gradients, chosen, strict=True)]
                optimiser.update(values, slopes, config.learning_rate)
                _write(context.parameters, chosen, values)
        except BaseException:
            _write(context.parameters, chosen, given)
            raise
        report_progress("repairing, steps", config.num_steps, config.num_steps)


def _read(params: Sequence[nn.Parameter], at: Sequence[Tensor]) -> list[Tensor]:
    return [p.detach().flatten()[positions] for p, positions in zip(params, at, strict=True)]


@torch.no_grad()
def _write(params: Sequence[nn.Parameter], at: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for p, positions, value in zip(params, at, values, strict=False):  # nothing is chosen before the first step
        p.view(-1)[positions] = value
