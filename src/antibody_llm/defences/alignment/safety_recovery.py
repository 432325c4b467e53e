"""Safety recovery examples: refuse a harmful prompt also where a harmful answer has begun already.

    min_w  alpha E_(x,h) E_k NLL(r | x, h_<=k)  +  (1 - alpha) f(w)
    k      0 with probability 1/2, else uniform on 1 .. min(``longest``, |h|)

    f      alignment loss: NLL of the provider's rows, refusals and harmless ones       [nats per token]
    x, h   harmful prompt and harmful completion, h_<=k its first k tokens, |h| without its end of sequence
    r      generic refusal number (step * B + position) mod n; the NLL is a mean over the refusals' tokens

Plain alignment decides at an answer's first tokens and nowhere else; a model that has been made to begin goes on. Here
a refusal may come after any beginning. Two forwards and two backwards; alpha = 0 is plain SFT.

Reference: Xiangyu Qi, Ashwinee Panda, Kaifeng Lyu, Xiao Ma, Subhrajit Roy, Ahmad Beirami, Prateek Mittal, Peter
Henderson, Safety Alignment Should Be Made More Than Just a Few Tokens Deep, ICLR 2025,
https://arxiv.org/abs/2406.05946, the data augmentation of its first half; the other half is
defences/finetuning/constrained_sft.py. Ours: the refusals are the generic ones, and f is the provider's whole alignment
data, where the paper fine-tunes a chat model on utility rows. The distribution of k and alpha are the paper's as we
know them, not checked against its text.
"""

from dataclasses import dataclass

import torch

from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...primitives.gradients import combined, scaled
from ...training.defence import About, Defence
from ...training.interrupted import interrupted_batch
from ...training.step import Batches, StepContext, StepResult


@dataclass(frozen=True, kw_only=True)
class SafetyRecoveryConfig:
    """Hyperparameters."""

    alpha: float = 0.2
    """Weight of the recovery examples, 0 to 1. Paper: 0.2. 0 is plain SFT."""
    longest: int = 100
    """Most tokens of a harmful answer before the refusal. Paper: 100."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"safety-recovery.alpha is {self.alpha}: a share lies between 0 and 1.")
        if self.longest < 1:
            raise ConfigError(f"safety-recovery.longest is {self.longest}: must be 1 or more.")


def depth(num_tokens: int, longest: int, generator: torch.Generator) -> int:
    """k, for a harmful answer of ``num_tokens`` tokens."""
    most = min(longest, num_tokens)
    begins, k = torch.rand((), generator=generator), torch.randint(max(most, 1), (), generator=generator)
    return 0 if most == 0 or float(begins) < 0.5 else 1 + int(k)


class SafetyRecovery(Defence):
    """Defence that adds refusals behind the beginnings of harmful answers to plain alignment."""

    config: SafetyRecoveryConfig
    stage = Stage.ALIGNMENT
    about = About(
        summary="refusals are also learnt behind the first tokens of a harmful answer",
        paper="2406.05946",
        forwards=2,
        backwards=2,
        extra_memory="1 gradient",
    )
    options = SafetyRecoveryConfig
    batches = (Role.HARMFUL,)
    needs_refusals = True
    neutral = {"alpha": 0.0}

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, as in the head of this file."""
        plain = super().step(context, batches)
        alpha, longest = self.config.alpha, self.config.longest
        if alpha == 0:
            return plain
        broken_off = interrupted_batch(context, batches[Role.HARMFUL], lambda n, g: depth(n, longest, g))
        recovery = context.gradient("token_mean_nll", broken_off)
        update = combined(scaled(plain.gradients, 1 - alpha), (alpha, recovery.gradients))
        loss = (1 - alpha) * plain.loss + alpha * recovery.loss
        return StepResult(update, loss, {"loss_alignment": plain.loss, "loss_recovery": recovery.loss}, plain.rows)
