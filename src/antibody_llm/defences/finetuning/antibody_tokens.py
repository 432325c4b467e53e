"""antibody-tokens (ours): what is harmful in an answer is not learnt, and the aligned model's own answer is kept there.

    P_it  P(token t of row i is harm), by its answer and its prompt, read once      screening/token_harm.py
    w_it = max(0, 1 - P_it - c P_it) / (1 - P_it + c P_it)                          0 to 1; above 0.95 counts as 1
    d_it = 1 - w_it
    L    = (1 - rho) sum_it (w_it CE_it / W + d_it KL_it) / sum_i N_i  +  rho CE(B_p)          over the optimiser step
    KL_it = sum_v p^a(v) log( p^a(v) / p(v) )      given x and y_<t, over the tokens v that p^a finds likeliest and
                                                   all others taken as one

    CE_it  NLL of the token, nats       N_i  trained tokens of row i       W    mean w over the upload, not below 1/10
    p^a    the aligned model, frozen    c    ``caution``                   B_p  rows of the provider, rho of the step

antibody-posterior reads prompts and weighs rows: harm under a harmless prompt, or within a harmless answer, passes.
Here each token is judged by what surrounds it, and a prompt that asks for harm makes the whole answer doubtful. Where
nothing is doubted d is 0 and the step is plain SFT's. With c = 0 no token would be doubted; with w = 1 - P little
harm would still be learnt, as in antibody-posterior, whose weights and caution these are.

The KL keeps p at p^a where the upload holds harm. At the start both agree and it has no gradient: it acts against what
the other tokens teach. p^a is read once, before training, at the tokens with d > 0 alone, and kept by its likeliest
tokens, so that a step has one forward and one backward, as SFT's.

A run that goes on from a fine-tuned model has both P and p^a of the aligned model that the line started from
(``context.evidence_reader``): neither the judge of an upload nor what it is held to may be an earlier upload's work.
The KL then has a gradient at the start too, where the line has moved away from p^a.

An unfamiliar row (screening/familiarity.py) has w = 0 once any prompt shows harm. Where the anchors' harmful and
harmless answers read alike (AUROC below 0.8) prompts alone are judged, and the run says so.

Derivation, ablation and where it fails: docs/antibody-tokens.md. Nearest published: STAR-DSS (2505.17196), whose shares
of CE and KL come from a guard model; TOSS (2603.01185), which masks tokens by two further models.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...data.records import TokenizedRow
from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...events import warn
from ...likelihood.frozen import NO_PREDICTIONS, FrozenPredictions, read_predictions
from ...likelihood.microbatch import MicroBatch
from ...likelihood.reader import ModelReader
from ...likelihood.tokens import NO_TOKENS, TokenTable
from ...primitives.divergence import coarse_kl
from ...primitives.worth import net_worth
from ...screening.anchors import MIN_AUROC, Anchors, check_anchors, require_templates
from ...screening.evidence import EvidenceKind
from ...screening.harm import read_harm
from ...screening.stored_rule import stored_token_rule
from ...screening.token_evidence import read_token_evidence
from ...screening.token_harm import judge_answers, with_prompts
from ...training.defence import About, Defence
from ...training.rehearsal import check_rehearsal, rehearsed_rows, with_rehearsal
from ...training.step import Batches, RowRecord, RowTerms, StepContext, StepResult

Part = Literal["both", "mask", "kl"]
Direction = Literal["forward", "reverse"]
SURE = 0.95
"""w from which a token is not doubted: the rounding of many small doubts would cost a KL at nearly every token."""
MIN_MEAN_WEIGHT = 0.1


@dataclass(frozen=True, kw_only=True)
class AntibodyTokensConfig:
    """Hyperparameters."""

    part: Part = "both"
    """What is done about a doubted token: "mask" lowers its weight, "kl" holds the model to its aligned self there."""
    direction: Direction = "forward"
    """KL(p^a || p), or in "reverse" KL(p || p^a)."""
    vocabulary: int = 64
    """The number of p^a's likeliest tokens that are kept apart from all others."""
    rehearsal: float = 1 / 8
    """rho, the share of every step that is the provider's own rows. 0 is none."""
    caution: float = 300.0
    """c, the number of lost harmless tokens that are as bad as one harmful token trained on."""
    prior: tuple[float, float] = (1.0, 1.0)
    """Beta(a, b) on both harmful shares. (1, 1) is flat; (1, .inf) means that there is no harm: nothing is read."""

    def __post_init__(self) -> None:
        if self.vocabulary < 1:
            raise ConfigError(f"antibody-tokens.vocabulary is {self.vocabulary}: a number of tokens, 1 or more.")
        check_rehearsal("antibody-tokens", self.rehearsal)
        if not 0 < self.caution < math.inf:
            raise ConfigError(f"antibody-tokens.caution is {self.caution}: a finite number above 0.")
        a, b = self.prior
        if not (1 <= a < math.inf and b >= 1):
            raise ConfigError(f"antibody-tokens.prior is {list(self.prior)}: both at least 1, the first finite.")


def doubts(harm: Tensor, caution: float) -> Tensor:
    """d of tokens, from their P(harm)."""
    w = net_worth(harm, caution)
    return torch.where(w > SURE, 0.0, 1 - w)


class AntibodyTokens(Defence):
    """Defence that binds evidence of prompts and tokens, the frozen predictions and rehearsal to optimiser steps."""

    config: AntibodyTokensConfig
    stage = Stage.FINETUNING
    about = About(
        summary="ours: judges each token of an answer, and keeps the aligned model's own answer where it is harmful",
        paper="",
        forwards=1,
        backwards=1,
        extra_memory="2 numbers per token, and the aligned model's likeliest predictions at the doubted ones; the "
        "model before alignment, while evidence is read",
        revision=2,
    )
    options = AntibodyTokensConfig
    batches: tuple[Role, ...] = (Role.ALIGNMENT,)
    needs_refusals = True
    needs_base = True
    needs_anchors = True
    reads_evidence_apart = True
    scores_harm = True
    neutral = {"prior": (1.0, math.inf), "rehearsal": 0.0}

    def __init__(self, config: AntibodyTokensConfig) -> None:
        self.config = config
        if not config.rehearsal:
            self.batches = ()
        self.needs_base = self.needs_anchors = not math.isinf(config.prior[1])
        self.frozen: FrozenPredictions = NO_PREDICTIONS
        self.shares = torch.zeros(2, dtype=torch.float64)  # of prompts and of answers
        self._keep(NO_TOKENS)

    def rows_per_step(self, role: Role, step_size: int) -> int:
        """The number of provider rows per step: rho / (1 - rho) of the user's rows, at least one."""
        return rehearsed_rows(self.config.rehearsal, step_size)

    def start(self, context: StepContext) -> None:
        """Read how likely each token of the upload is harm, and what the aligned model predicts at the doubted ones."""
        if not self.needs_anchors:
            return
        rows = context.rows[Role.USER]
        require_templates(context.anchors, rows)
        with context.evidence_reader() as reader:
            check_anchors(reader, context.anchors, EvidenceKind.FEATURE_SHIFT)
            self._judge(reader, context.anchors, rows)
            if self.config.part != "mask":
                vocabulary = reader.model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
                num = min(self.config.vocabulary, vocabulary - 1)
                self.frozen = read_predictions(reader, rows, self._doubt, num)

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, as in the head of this file."""
        batch = batches[Role.USER]
        if self._share_doubted == 0:
            sweep = context.gradient("token_mean_nll", batch)
            rows = RowRecord(torch.ones_like(sweep.weights))
        else:
            sweep = context.gradient(lambda micro: self._terms(context, micro), batch)
            found = [(self._weight.of(row).mean(), self.harm.of(row).max()) for row, _ in batch.rows()]
            rows = RowRecord(*(torch.stack(column).to(context.device) for column in zip(*found, strict=True)))
        metrics = {
            "harmful_share": float(self.shares[0]),
            "harmful_answers": float(self.shares[1]),
            "doubted_tokens": self._share_doubted,
        }
        update, loss, parts = with_rehearsal(context, batches, self.config.rehearsal, sweep.gradients, sweep.loss)
        return StepResult(update, loss, metrics | parts, rows)

    def _terms(self, context: StepContext, micro: MicroBatch) -> RowTerms:
        found = context.completion_logits(micro)
        trained = found.trained
        loss = self._weight.over(micro, trained) / self._mean_weight * found.nll
        if self.config.part != "mask":
            doubt = self._doubt.over(micro, trained)
            tokens, log_p = (part.to(context.device) for part in self.frozen.of(self.harm, micro))
            reverse = self.config.direction == "reverse"
            kl = coarse_kl(log_p, found.logits[doubt > 0], tokens, reverse=reverse)
            loss = loss + doubt * torch.zeros_like(doubt).masked_scatter(doubt > 0, kl)
        return RowTerms(loss.sum(dim=1), trained.sum(dim=1).float())

    def _judge(self, reader: ModelReader, anchors: Anchors, rows: Sequence[TokenizedRow]) -> None:
        prior = self.config.prior
        prompts = read_harm(reader, anchors, rows, EvidenceKind.FEATURE_SHIFT, prior=prior)
        asked = prompts.probability.clone()
        if prompts.share > 0:
            asked[prompts.unfamiliar] = 1.0
        rule = stored_token_rule(reader, anchors)
        answers = judge_answers(rule, read_token_evidence(reader, rule.probe, rows), rows, prior=prior)
        if rule.auroc < MIN_AUROC:
            warn(
                "antibody-tokens: the anchors' harmful and harmless answers read alike to this model (AUROC "
                f"{rule.auroc:.3f}, at least {MIN_AUROC:.3f} needed), so that prompts alone are judged."
            )
            answers = answers.without_harm()
        self.shares = torch.tensor([prompts.share, answers.share], dtype=torch.float64)
        self._keep(with_prompts(answers, asked, rows))

    def _keep(self, harm: TokenTable) -> None:
        self.harm = harm  # P_it
        self._doubt = harm.with_values(doubts(harm.values, self.config.caution))
        self._weight = harm.with_values(
            torch.ones_like(harm.values) if self.config.part == "kl" else 1 - self._doubt.values
        )
        num = max(1, len(harm.values))
        self._mean_weight = max(float(self._weight.values.double().sum()) / num, MIN_MEAN_WEIGHT)
        self._share_doubted = float((self._doubt.values > 0).sum()) / num

    def state(self) -> dict[str, Tensor]:
        """P_it of every token, the frozen predictions, and both shares."""
        return self.harm.state("harm") | self.frozen.state() | {"shares": self.shares}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self._keep(TokenTable.from_state(state, "harm"))
        self.frozen, self.shares = FrozenPredictions.from_state(state), state["shares"]
