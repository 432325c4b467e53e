"""KL to the aligned model: what is risky is not learnt, it is answered as before.

    L = sum_it [ (1 - lam_it) CE_it + lam_it KL_it ] / sum_i N_i                             over the optimiser step
    KL_it = sum_v p^0(v | x, y_<t) log( p^0(v | x, y_<t) / p(v | x, y_<t) )                  p^0 is a constant

    risk "row"       lam_it = clip((4 r_i - 1) / 3, low, high),  r_i: P(harm) of the row's prompt by a probe
    risk "token"     lam_it = P(harm) of the answer up to token t by a probe
    risk "constant"  lam_it = lam

    CE_it   NLL of token t of row i, nats; N_i completion tokens of row i
    p^0     the model before its first step; p the model that trains
    probe   logistic regression on the mean hidden state of the middle decoder layer, under p^0: over the tokens of the
            prompt ("row") or over those of the answer so far ("token"). Fitted to the anchors stored with the model,
            their prompts or their whole answers, harmful against benign, both labels of equal weight

"row" is adaptive regularisation: there a judge's grade g from 1 to 5 gives clip((g - 2) / 3), here g = 1 + 4 r. "token"
is STAR-DSS, v_t = 1 - lam_t, with our probe for the guard model that grades its unfinished answers. "constant" is the
term that both adapt. Risks are read once, before training; a row with several answers has the risk of its worst prompt,
and each answer its own tokens. Two forwards, one of them without gradient, and one backward.

References: "row": Jyotin Goel, Souvik Maji, Pratik Mazumder, Learning to Stay Safe: Adaptive Regularization Against
Safety Degradation during Fine-Tuning, https://arxiv.org/abs/2602.17546; its release has the clip, the probe on mean
states of the prompt, and one risk for a batch of 4 rows, where ours is each row's. "token": ShengYun Peng, Pin-Yu Chen,
Jianfeng Chi, Seongmin Lee, Duen Horng Chau, Shape it Up! Restoring LLM Safety during Finetuning, NeurIPS 2025,
https://arxiv.org/abs/2505.17196, rebuilt from its formula. The layer and g = 1 + 4 r are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from ...data.records import TokenizedRow
from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...likelihood.completion import evaluating
from ...likelihood.microbatch import MicroBatch
from ...likelihood.tokens import NO_TOKENS, TokenTable, num_trained, read_tokens
from ...models.layout import decoder_layers
from ...primitives.mixture import LogRatio, log_density_ratio
from ...primitives.taps import captured
from ...screening.anchors import require_templates
from ...training.defence import About, Defence
from ...training.reference import Reference
from ...training.step import Batches, RowRecord, RowTerms, StepContext, StepResult

Risk = Literal["row", "token", "constant"]


@dataclass(frozen=True, kw_only=True)
class KLToAlignedConfig:
    """Hyperparameters."""

    risk: Risk = "row"
    """What decides the share of the KL term, as in the head of this file."""
    lam: float = 0.5
    """"constant": that share, 0 to 1. 0 is plain SFT."""
    low: float = 0.1
    """"row": its smallest value. Release: 0.1."""
    high: float = 0.9
    """"row": its largest value. Release: 0.9."""

    def __post_init__(self) -> None:
        for name in ("lam", "low", "high"):
            value = getattr(self, name)
            if not (0 <= value <= 1 and isfinite(value)):
                raise ConfigError(f"kl-to-aligned.{name} is {value}: a share lies between 0 and 1.")
        if self.low > self.high:
            raise ConfigError(f"kl-to-aligned.low is {self.low}, above high, {self.high}: swap them.")


def row_share(risk: Tensor, low: float, high: float) -> Tensor:
    """lam of rows, from their risk r, 0 to 1: clip((4 r - 1) / 3, low, high)."""
    return ((4 * risk - 1) / 3).clamp(low, high)


def prompt_means(states: Tensor, row: TokenizedRow) -> Tensor:
    """[turns, D]: the mean state over all that precedes each trained turn, from the row's states, [T, D]."""
    return torch.stack([states[:start].mean(dim=0) for start, _ in row.spans])


def answer_means(states: Tensor, row: TokenizedRow) -> Tensor:
    """[N_i, D]: at each trained token the mean state over its answer so far, that token included; states are [T, D]."""
    means = []
    for start, end in row.spans:
        answer = states[start:end]
        means.append(answer.cumsum(dim=0) / torch.arange(1, end - start + 1, device=states.device)[:, None])
    return torch.cat(means)


class KLToAligned(Defence):
    """Defence that binds risks and both losses to the rows of an optimiser step."""

    config: KLToAlignedConfig
    stage = Stage.FINETUNING
    about = About(
        summary="what looks harmful is pulled towards the aligned model's own predictions instead of being learnt",
        paper="2602.17546",
        forwards=2,
        backwards=1,
        extra_memory="1 copy of the trainable weights, the aligned model's logits of a micro-batch, 1 number per token",
    )
    options = KLToAlignedConfig
    needs_anchors = True
    neutral = {"risk": "constant", "lam": 0.0}

    def __init__(self, config: KLToAlignedConfig) -> None:
        self.config = config
        self.needs_anchors = config.risk != "constant"
        self.reference = Reference()  # p^0
        self.shares = NO_TOKENS  # lam_it

    def start(self, context: StepContext) -> None:
        """Keep the aligned weights, and read the risk of the whole upload under them."""
        if self._plain:
            return
        self.reference = Reference.of(context)
        if self.config.risk != "constant":
            require_templates(context.anchors, context.rows[Role.USER])
            probe = self._probe(context)
            self.shares = read_tokens(
                context, context.rows[Role.USER], lambda micro: self._risky(context, micro, probe)
            )

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, as in the head of this file."""
        if self._plain:
            return super().step(context, batches)
        sweep = context.gradient(lambda micro: self._terms(context, micro), batches[Role.USER])
        assert sweep.scores is not None
        return StepResult(sweep.gradients, sweep.loss, rows=RowRecord(1 - sweep.scores, sweep.scores))

    @property
    def _plain(self) -> bool:
        return self.config.risk == "constant" and self.config.lam == 0

    def _terms(self, context: StepContext, micro: MicroBatch) -> RowTerms:
        found, kl = self.reference.divergence(context, micro)
        trained, nll = found.trained, found.nll
        if self.config.risk == "constant":
            lam = self.config.lam * trained.float()
        else:
            lam = self.shares.over(micro, trained)
        num_tokens = trained.sum(dim=1).float()
        return RowTerms(((1 - lam) * nll + lam * kl).sum(dim=1), num_tokens, score=lam.sum(dim=1) / num_tokens)

    def _risky(self, context: StepContext, micro: MicroBatch, probe: LogRatio) -> Tensor:
        """lam of every trained token of a micro-batch, [sum of its N_i]."""
        shares = []
        for row, states in zip(micro.rows, _states(context, micro), strict=True):
            if self.config.risk == "token":
                shares.append(torch.sigmoid(probe(answer_means(states, row))))
            else:
                risk = torch.sigmoid(probe(prompt_means(states, row))).max()
                shares.append(row_share(risk, self.config.low, self.config.high).expand(num_trained(row)))
        return torch.cat(shares).to(context.device)

    def _probe(self, context: StepContext) -> LogRatio:
        """Fit log p(harm) - log p(benign) to the anchors."""
        anchors = context.anchors
        size = context.model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]

        def means(micro: MicroBatch) -> Tensor:
            found = zip(micro.rows, _states(context, micro), strict=True)
            if self.config.risk == "token":
                return torch.stack([answer_means(states, row)[-1] for row, states in found]).to(context.device)
            return torch.stack([prompt_means(states, row)[0] for row, states in found]).to(context.device)

        with evaluating(context.model):
            features = context.over_rows(anchors.rows, means, width=size).cpu()
        return log_density_ratio(features[: anchors.num_harmful], features[anchors.num_harmful :])

    def state(self) -> dict[str, Tensor]:
        """The aligned weights and every token's share."""
        return self.reference.state() | self.shares.state("shares")

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self.reference, self.shares = Reference.from_state(state), TokenTable.from_state(state, "shares")


def _states(context: StepContext, micro: MicroBatch) -> Tensor:
    """[B, T, D], float32, on the CPU: the output of the middle decoder layer at every position; no gradient."""
    layers = decoder_layers(context.model)
    with torch.no_grad(), captured([layers[len(layers) // 2]]) as outputs:
        context.completion_logits(micro)
        return outputs[0].float().cpu()
