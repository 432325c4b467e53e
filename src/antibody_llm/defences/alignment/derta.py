"""DeRTa: refuse at any position of an answer, not at its first alone.

    min_w  f(w)  +  mu E_(x,h) E_k NLL(r | x, h_<=k)  +  lam E_(x,h) mean_t -log p(r_1 | x, h_<t)

    f      alignment loss: NLL of the provider's rows, refusals and harmless ones              [nats per token]
    x, h   harmful prompt and harmful completion;  k uniform on 0 .. |h|, the end of sequence not counted
    r      generic refusal number (step * B + position) mod n, r_1 its first token; mean over the refusals' tokens
    t      every token of h, its end of sequence included: at each the next token should be r_1

The second term is maximum likelihood behind a harmful prefix, the third reinforced transition: "go on" is never right.
Three forwards and three backwards; mu = lam = 0 is plain SFT.

Reference: Youliang Yuan, Wenxiang Jiao, Wenxuan Wang, Jen-tse Huang, Jiahao Xu, Tian Liang, Pinjia He, Zhaopeng Tu,
Refuse Whenever You Feel Unsafe: Improving Safety in LLMs via Decoupled Refusal Training, ACL 2025,
https://arxiv.org/abs/2407.09121, rebuilt from descriptions of both terms; equations and code were not seen. Ours: the
weights of 1, the uniform k, and generic refusals where the paper has a refusal of its own for each prompt.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...likelihood.microbatch import MicroBatch, StepBatch
from ...primitives.gradients import combined
from ...training.defence import About, Defence
from ...training.interrupted import interrupted_batch
from ...training.step import Batches, RowTerms, StepContext, StepResult, Sweep


@dataclass(frozen=True, kw_only=True)
class DeRTaConfig:
    """Hyperparameters."""

    mu: float = 1.0
    """Weight of refusals behind a harmful prefix."""
    lam: float = 1.0
    """Weight of the transition at every token."""

    def __post_init__(self) -> None:
        for name in ("mu", "lam"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"derta.{name} is {getattr(self, name)}: must be a finite number, 0 or more.")


def any_depth(num_tokens: int, generator: torch.Generator) -> int:
    """k, uniform on 0 .. ``num_tokens``."""
    return int(torch.randint(num_tokens + 1, (), generator=generator))


class DeRTa(Defence):
    """Defence that adds both terms to plain alignment."""

    config: DeRTaConfig
    stage = Stage.ALIGNMENT
    about = About(
        summary="refusals are learnt at every position of a harmful answer",
        paper="2407.09121",
        forwards=3,
        backwards=3,
        extra_memory="2 gradients",
    )
    options = DeRTaConfig
    batches = (Role.HARMFUL,)
    needs_refusals = True
    neutral = {"mu": 0.0, "lam": 0.0}

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, as in the head of this file."""
        plain, harmful = super().step(context, batches), batches[Role.HARMFUL]
        update, loss, metrics = plain.gradients, plain.loss, {"loss_alignment": plain.loss}
        if self.config.mu:
            prefixed = context.gradient("token_mean_nll", interrupted_batch(context, harmful, any_depth))
            update, loss = combined(update, (self.config.mu, prefixed.gradients)), loss + self.config.mu * prefixed.loss
            metrics["loss_prefixed"] = prefixed.loss
        if self.config.lam:
            turned = self._transition(context, harmful)
            update, loss = combined(update, (self.config.lam, turned.gradients)), loss + self.config.lam * turned.loss
            metrics["loss_transition"] = turned.loss
        return StepResult(update, loss, metrics, plain.rows)

    def _transition(self, context: StepContext, batch: StepBatch) -> Sweep:
        """The gradient of the mean over the harmful rows' tokens of -log p(r_1)."""
        first = context.step * batch.num_rows

        def terms(micro: MicroBatch) -> RowTerms:
            found = context.completion_logits(micro)
            opening = [
                context.refusals.of(row, first + at)[0] for row, at in zip(micro.rows, micro.positions, strict=True)
            ]
            wanted = torch.tensor(opening, device=found.targets.device)[:, None].expand_as(found.targets)[found.trained]
            nll = F.cross_entropy(found.logits[found.trained].float(), wanted, reduction="none")
            spread = torch.zeros(found.targets.shape, device=nll.device).masked_scatter(found.trained, nll)
            return RowTerms(spread.sum(dim=1), found.trained.sum(dim=1).float())

        return context.gradient(terms, batch)
