"""PACT: hold the model to the aligned one's confidence in a few safety tokens, and leave all others free.

    L = sum_it [ CE_it + lam T^2 KL(q_it || p_it) ] / sum_i N_i                              over the optimiser step

    p_it = softmax( z_it[S] / T )                             z: logits of the model that trains at token t of row i
    q_it ~ max(w, 0) softmax( [(1 - c) a + c b][S] / T )      a: logits of the aligned model;  b: the same, the answer
                                                              read behind its prompt's last token alone
    c_it = sigmoid( 2 (n(z_it) - n(a_it)) ) 2^-((t - 8)+ / 8)     n: how many tokens of S hold 90 % of the mass of S
    S, w   the 50 likeliest tokens under the aligned model, averaged over the first 64 tokens of refusals; and how much
           likelier than before alignment each is there, standardised over S

    CE_it  NLL of token t of row i, nats; t counts from 0 in each answer; N_i completion tokens of row i

q and c are constants when L is differentiated. Where the model that trains spreads its mass over more safety tokens
than the aligned one, the prompt has moved it, and the reference listens to the answer instead. Three forwards, two of
them without gradient, and one backward.

Reference: Guoli Wang, Haonan Shi, Tu Ouyang, An Wang, Few Tokens, Big Leverage: Preserving Safety Alignment by
Constraining Safety Tokens during Fine-tuning, https://arxiv.org/abs/2603.07445, its numbers and form as released. Ours:
lam, whose value was not seen; the halving of c every 8 tokens (there it "decays after 8"); refusals that the provider
wrote for answers that the model gives; the last token of the prompt, without which the first token has no prediction.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor
from torch.nn import functional as F

from ...data.records import TokenizedRow
from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...likelihood.completion import completion_logits, evaluating
from ...likelihood.microbatch import MicroBatch
from ...primitives.selection import drawn
from ...training.defence import About, Defence
from ...training.preparation import TrainingData
from ...training.reference import Reference
from ...training.step import Batches, RowRecord, RowTerms, StepContext, StepResult

MASS = 0.9
"""Share of the mass of S that n counts the tokens of. Release: 0.9."""
STEEPNESS = 2.0
"""Factor in the sigmoid of c. Release: 2."""
FIRST = 8
"""Tokens of an answer in which c does not decay. Release: 8."""


@dataclass(frozen=True, kw_only=True)
class PACTConfig:
    """Hyperparameters; defaults are the release's, except lam."""

    lam: float = 1.0
    """Weight of the KL term. 0 is plain SFT. Ours."""
    num_tokens: int = 50
    """Size of S; the whole vocabulary if that is smaller."""
    num_prompts: int = 512
    """Refusals that S is read from, drawn with the run's seed; all of them if there are fewer."""
    num_positions: int = 64
    """First tokens of each refusal that S is read from."""
    temperature: float = 2.0
    """T."""

    def __post_init__(self) -> None:
        if not (self.lam >= 0 and isfinite(self.lam)):
            raise ConfigError(f"pact.lam is {self.lam}: must be a finite number, 0 or more.")
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"pact.temperature is {self.temperature}: must be a finite number above 0.")
        for name, least in (("num_tokens", 2), ("num_prompts", 1), ("num_positions", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"pact.{name} is {getattr(self, name)}: must be {least} or more.")


def safety_tokens(aligned: Tensor, before: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """S and w: [n], int64, and [n], float32.

    Args:
        aligned: [V]: mean probability of each token under the aligned model.
        before: [V]: the same before alignment.
        num: Size of S.
    """
    tokens = aligned.topk(min(num, len(aligned))).indices
    risen = (aligned - before)[tokens]
    return tokens, (risen - risen.mean()) / risen.std().clamp(min=1e-12)


def num_holding(logits: Tensor) -> Tensor:
    """n: [M], how many tokens of S hold ``MASS`` of its mass; logits are [M, n]."""
    held = logits.float().softmax(dim=-1).sort(dim=-1, descending=True).values.cumsum(dim=-1)
    return (held < MASS).sum(dim=-1) + 1


def target(full: Tensor, alone: Tensor, c: Tensor, w: Tensor, temperature: float) -> Tensor:
    """q: [M, n], float32.

    Args:
        full: [M, n]: a on S.
        alone: [M, n]: b on S.
        c: [M].
        w: [n].
        temperature: T.
    """
    mixed = (1 - c)[:, None] * full.float() + c[:, None] * alone.float()
    q = w.clamp(min=0) * (mixed / temperature).softmax(dim=-1)
    return q / q.sum(dim=-1, keepdim=True).clamp(min=1e-30)


class PACT(Defence):
    """Defence that binds safety tokens, target and gate to the rows of an optimiser step."""

    config: PACTConfig
    stage = Stage.FINETUNING
    about = About(
        summary="the model keeps the aligned one's confidence in the tokens of refusals; all other tokens are free",
        paper="2603.07445",
        forwards=3,
        backwards=1,
        extra_memory="1 copy of the trainable weights; the aligned model's logits of a micro-batch",
    )
    options = PACTConfig
    reads_at_start = (Role.ALIGNMENT,)
    needs_base = True
    neutral = {"lam": 0.0}

    def __init__(self, config: PACTConfig) -> None:
        self.config = config
        self.reference = Reference()  # the aligned model
        self.tokens = torch.zeros(0, dtype=torch.int64)  # S
        self.w = torch.zeros(0)

    def prepare(self, data: TrainingData) -> TrainingData:
        """Draw among the provider's rows that refuse.

        Raises:
            DataError: no row refuses.
        """
        if self.config.lam == 0:
            return data
        refusals = data.refusals("pact")
        num = min(self.config.num_prompts, len(refusals))
        return data.with_records(Role.ALIGNMENT, drawn(refusals, num, seed=f"pact.{data.seed}"))

    def start(self, context: StepContext) -> None:
        """Keep the aligned weights, and read the safety tokens."""
        if self.config.lam == 0:
            return
        self.reference = Reference.of(context)
        aligned = self._mean_probabilities(context, context.model)
        with context.before_alignment() as model:
            before = self._mean_probabilities(context, model)
        size = min(len(aligned), len(before))  # one of them may be padded further
        self.tokens, self.w = safety_tokens(aligned[:size], before[:size], self.config.num_tokens)

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, as in the head of this file."""
        if self.config.lam == 0:
            return super().step(context, batches)
        sweep = context.gradient(lambda micro: self._terms(context, micro), batches[Role.USER])
        return StepResult(sweep.gradients, sweep.loss, rows=RowRecord(torch.ones_like(sweep.weights)))

    def _terms(self, context: StepContext, micro: MicroBatch) -> RowTerms:
        config = self.config
        a = self.reference.logits(context, micro)[:, self.tokens]
        b = self.reference.logits(context, MicroBatch.of(_answers_alone(micro)))[:, self.tokens]
        found = context.completion_logits(micro)
        z = found.logits[found.trained][:, self.tokens].float()
        c = torch.sigmoid(STEEPNESS * (num_holding(z.detach()) - num_holding(a)))
        c = c * torch.exp2(-(_positions(micro, z.device) - FIRST).clamp(min=0) / FIRST)
        q = target(a, b, c, self.w, config.temperature)
        kl = F.kl_div((z / config.temperature).log_softmax(dim=-1), q, reduction="none").sum(dim=-1)
        held = torch.zeros(found.targets.shape, device=kl.device).masked_scatter(found.trained, kl)
        scale = config.lam * config.temperature**2
        return RowTerms((found.nll + scale * held).sum(dim=1), found.trained.sum(dim=1).float())

    def _mean_probabilities(self, context: StepContext, model: torch.nn.Module) -> Tensor:
        """[V]: the mean probability of each token over the first tokens of the refusals."""
        total, num = torch.zeros(0, device=context.device), torch.zeros(1, device=context.device)

        def add(micro: MicroBatch) -> Tensor:
            nonlocal total
            with context.autocast():
                found = completion_logits(model, micro, pad_id=context.pad_id)
            early = _positions(micro, context.device) < self.config.num_positions
            p = found.logits[found.trained][early].float().softmax(dim=-1).sum(dim=0)
            total = p if len(total) == 0 else total + p
            num.add_(early.sum())
            return torch.zeros(len(micro.rows))

        with evaluating(model):
            context.over_rows(Role.ALIGNMENT, add)
        if len(total) == 0:  # this rank had no row
            config = model.config
            total = torch.zeros(config.get_text_config().vocab_size, device=context.device)  # type: ignore[union-attr, operator]
        mean: Tensor = context.all_reduce(total) / context.all_reduce(num)
        return mean

    def state(self) -> dict[str, Tensor]:
        """The aligned weights, the safety tokens and their weights."""
        return self.reference.state() | {"tokens": self.tokens, "w": self.w}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self.reference, self.tokens, self.w = Reference.from_state(state), state["tokens"], state["w"]


def _answers_alone(micro: MicroBatch) -> list[TokenizedRow]:
    """Each trained turn behind the last token of its prompt, in the order of the rows' tokens."""
    return [
        TokenizedRow(row.row_id, row.input_ids[start - 1 : end], ((1, end - start + 1),), row.template)
        for row in micro.rows
        for start, end in row.spans
    ]


def _positions(micro: MicroBatch, device: torch.device) -> Tensor:
    """t of every trained token, [sum of N_i], row by row."""
    return torch.cat([torch.arange(end - start) for row in micro.rows for start, end in row.spans]).to(device)
