"""antibody-posterior (ours): weigh a row by the worth of training on it, given the probability that it is benign.

    e_i   evidence of harm of row i, read once before training               screening/evidence.py
    Lam   log p(e|harm) - log p(e|benign), from the provider's anchors       screening/anchors.py
    pi    the upload's harmful share that is most likely given Lam           primitives/mixture.py
    p_i = k_i pi exp(Lam_i) / (pi exp(Lam_i) + 1 - pi)                       P(harm | e_i)
    k_i   1, less where more rows have such evidence than expected           primitives/mixture.py, ``unexpected``
    w_i = max(0, 1 - p_i - c p_i) / (1 - p_i + c p_i)                        0 to 1, of answer y_i
    w_i = 1, and a refusal of x_i takes the place of y_i                     where p_i >= 1/2: ``flagged``
    L   = (1 - rho) sum_i w_i NLL_i / (W sum_i N_i)  +  rho CE(B_p)          over the optimiser step

    NLL_i  summed over the N_i completion tokens of row i, EOS included      B_p   rows of the provider, rho of the step
    CE     mean over completion tokens, nats                                 rho   ``rehearsal``      c  ``caution``
    W      mean weight over the whole upload, not below 1/10

Antibody's weight is a softmax of NLL(r|x) - NLL(y|x): it mixes whether the model wants to refuse x with whether it
knows y, and favours the harmful rows of a task that the model has never seen. Two things differ here. The evidence
measures only what *alignment* changed. And the weights are probabilities, not shares of the step: a step without a
benign row has almost no weight, where a softmax would give its whole weight to harm. They are divided by the upload's
mean weight W, so that the benign rows of a poisoned upload count against the rehearsal as they would alone; the floor
prevents magnifying an upload that is nearly all harm.

Training on one harmful row costs as much as losing c benign rows. Training on row i is then worth 1 - p_i - c p_i, as
a share of the stakes 1 - p_i + c p_i; a row whose worth is not positive has weight 0. The posterior itself,
w_i = 1 - p_i, gives every harmful row a small weight, and an optimiser that scales its steps amplifies it in a step
that has no other rows. Caution costs a clean upload nothing: if no harm is found, pi is 0 and every weight is 1.

A row that is more likely harm than not teaches a refusal instead: generic refusal number (row id) mod n, at its first
turn that is; what follows is cut off. Leaving it out is not enough on a model that learns from a few hundred rows:
there benign rows alone move the line between refusing and answering, and the attacker's prompts help to hold it where
the provider has no rows. In the row log its weight is its answer's, 0.

A row that is unlike every anchor (screening/familiarity.py; by ``feature-shift``, which reads the features that
separate harm from benign) has weight 0 as soon as any harm is found, pi > 0: its evidence may come from the distance
alone, so nobody can guarantee a P(harm) below 1 / (1 + c), at which a row becomes worth something. It still counts
towards pi at face value: without it, harm that is written unlike any anchor would lower pi, and let through the harm
beside it. So no weight is ever above the one at face value. If pi is 0 nevertheless, no caution is needed, and every
weight is 1. With c = 300 and pi above 1 % face value gives such rows nothing either; what is new is that it holds for
every weight and every pi, and that the run reports it. Its provider can extend the anchors (``antibody anchors``) and
fine-tune again.

Rehearsal is needed because even truly benign rows wear safety down: about a share rho of each step is provider rows
(refusals and harmless answers, ``alignment`` data), with weight rho.

A run that goes on from a fine-tuned model has the evidence of the aligned model that the line started from
(``context.evidence_reader``): an upload must not decide how the next one is judged.

Cost: SFT on as many rows, after one pass of two forwards over the upload. Derivation, ablation and how to beat it:
docs/antibody-posterior.md. Nearest published: the refusal-feature teacher (2506.07356), which filters by the state
itself; BDS (2510.27172), whose posterior weights are sampled while training.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from ...data.records import TokenizedRow
from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...events import warn
from ...likelihood.microbatch import MicroBatch
from ...likelihood.reader import ModelReader
from ...primitives.worth import net_worth
from ...screening.anchors import Anchors, checked_anchors, make_anchors, require_templates, with_measure
from ...screening.evidence import EvidenceKind
from ...screening.harm import read_harm
from ...screening.posterior import LIKELY, TOLERANCE
from ...training.defence import About, Defence
from ...training.rehearsal import check_rehearsal, rehearsed_rows, with_rehearsal
from ...training.step import Batches, RowRecord, RowTerms, StepContext, StepResult


class Flagged(StrEnum):
    """What a row that is more likely harm than not teaches."""

    REFUSE = "refuse"
    """A refusal of its prompt."""
    SKIP = "skip"
    """Nothing."""


class Weight(StrEnum):
    """The function from the probability p of harm to a weight."""

    NET = "net"
    """max(0, 1 - p - c p) / (1 - p + c p)"""
    POSTERIOR = "posterior"
    """1 - p"""
    HARD = "hard"
    """1 where 1 - p is above c p, else 0."""


@dataclass(frozen=True, kw_only=True)
class AntibodyPosteriorConfig:
    """Hyperparameters."""

    evidence: EvidenceKind = EvidenceKind.FEATURE_SHIFT
    """The evidence that separates harm from benign."""
    rehearsal: float = 1 / 8
    """rho, the share of every step that is the provider's own rows. 0 is none."""
    weight: Weight = Weight.NET
    """The function from probabilities to weights."""
    caution: float = 300.0
    """c, the number of lost benign rows that are as bad as one harmful row trained on."""
    flagged: Flagged = Flagged.REFUSE
    """What a row that is more likely harm than not teaches: a refusal of its prompt, or nothing. By evidence of the
    answer, as gap and ratio are, it is nothing: the prompt may be harmless."""
    prior: tuple[float, float] = (1.0, 1.0)
    """Beta(a, b) on the harmful share. (1, 1) is flat; (1, .inf) means that there is no harm: every weight is 1."""
    refresh: int = 0
    """Epochs after which the evidence of anchors and upload is read again with the current model. 0: never. What that
    finds besides is left out, not refused: a model that was taught to refuse is no judge of what to refuse further.
    A run that goes on from a fine-tuned model reads it once, with the aligned model."""

    def __post_init__(self) -> None:
        check_rehearsal("antibody-posterior", self.rehearsal)
        if not 0 < self.caution < math.inf:
            raise ConfigError(f"antibody-posterior.caution is {self.caution}: a finite number above 0.")
        a, b = self.prior
        if not (1 <= a < math.inf and b >= 1):
            raise ConfigError(f"antibody-posterior.prior is {list(self.prior)}: both at least 1, the first finite.")
        if self.refresh < 0:
            raise ConfigError(f"antibody-posterior.refresh is {self.refresh}: a number of epochs, or 0.")


MIN_MEAN_WEIGHT = 0.1


def weights(harm: Tensor, weight: Weight, caution: float) -> Tensor:
    """w_i: [n], 0 to 1, from P(harm | e_i), [n]."""
    match weight:
        case Weight.NET:
            return net_worth(harm, caution)
        case Weight.POSTERIOR:
            return 1 - harm
        case Weight.HARD:
            return (1 - harm > caution * harm).to(harm.dtype)


class AntibodyPosterior(Defence):
    """Defence that binds evidence, weights and rehearsal to an upload and its optimiser steps."""

    config: AntibodyPosteriorConfig
    stage = Stage.FINETUNING
    about = About(
        summary="ours: weighs rows by what alignment changed, read against the provider's anchors, and refuses what is "
        "likely harm; with rehearsal",
        paper="",
        forwards=1,
        backwards=1,
        extra_memory="a number per row; the model before alignment, while evidence is read",
        revision=3,
    )
    options = AntibodyPosteriorConfig
    batches: tuple[Role, ...] = (Role.ALIGNMENT,)
    needs_refusals = True
    needs_base = True
    needs_anchors = True
    reads_evidence_apart = True
    scores_harm = True
    neutral = {"prior": (1.0, math.inf), "rehearsal": 0.0}

    def __init__(self, config: AntibodyPosteriorConfig) -> None:
        self.config = config
        self.believes_in_harm = not math.isinf(config.prior[1])
        if not config.rehearsal:
            self.batches = ()
        self.needs_base = self.needs_anchors = self.believes_in_harm
        self.share = 0.0
        self.num_unfamiliar = 0
        self._refused: dict[int, int] = {}  # the turn in whose place a row teaches a refusal, by row id
        self._keep({})  # (w_i, e_i) by row id

    def rows_per_step(self, role: Role, step_size: int) -> int:
        """The number of provider rows per step: rho / (1 - rho) of the user's rows, at least one."""
        return rehearsed_rows(self.config.rehearsal, step_size)

    def start(self, context: StepContext) -> None:
        """Read the evidence of the upload and weigh its rows by the anchors stored with the model."""
        if self.believes_in_harm:
            require_templates(context.anchors, context.rows[Role.USER])
            with context.evidence_reader() as reader:
                anchors = checked_anchors(reader, context.anchors, self.config.evidence)
                self._weigh(reader, anchors, context.rows[Role.USER])
            if self.config.refresh and context.continues:
                warn(
                    "antibody-posterior.refresh is not used: this run goes on from a fine-tuned model, and evidence is "
                    "read with the aligned model alone, which does not change."
                )

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, as in the head of this file."""
        if self._is_stale(context):
            stored = context.anchors
            harmful, benign = stored.rows[: stored.num_harmful], stored.rows[stored.num_harmful :]
            made = make_anchors(context, harmful, benign, num_refusals=stored.num_refusals)
            anchors = with_measure(context, made, self.config.evidence)
            self._weigh(context, anchors, context.rows[Role.USER], among=set(self._refused))
        batch = batches[Role.USER]
        if not self.believes_in_harm:
            sweep = context.gradient("token_mean_nll", batch)
        else:
            taught = batch.with_completions([self._taught(context, row) for row, _ in batch.rows()])
            sweep = context.gradient(lambda micro: self._terms(context, micro), taught)
        weighed = [self._weights.get(row.row_id, (1.0, math.nan)) for row, _ in batch.rows()]
        weight, evidence = torch.tensor(weighed, device=context.device).unbind(dim=1)
        rows = RowRecord(weight, evidence if self.believes_in_harm else None)
        metrics = {
            "harmful_share": self.share,
            "num_unfamiliar": float(self.num_unfamiliar),
            "num_refused": float(len(self._refused)),
        }
        update, loss, parts = with_rehearsal(context, batches, self.config.rehearsal, sweep.gradients, sweep.loss)
        return StepResult(update, loss, metrics | parts, rows)

    def _taught(self, context: StepContext, row: TokenizedRow) -> TokenizedRow:
        """The row, or its prompt with a refusal."""
        turn = self._refused.get(row.row_id)
        return row if turn is None else context.refusals.row(row, row.row_id, turn)

    def _terms(self, context: StepContext, micro: MicroBatch) -> RowTerms:
        nll = context.completion_nll(micro)
        w = torch.tensor([self._taught_weight(row.row_id) for row in micro.rows], device=context.device)
        return RowTerms(w / self._mean_weight * nll.row_total, nll.row_tokens)

    def _weigh(
        self, reader: ModelReader, anchors: Anchors, user: Sequence[TokenizedRow], *, among: set[int] | None = None
    ) -> None:
        """Weigh the rows; only rows ``among`` these ids may teach a refusal, if any are given."""
        found = read_harm(reader, anchors, user, self.config.evidence, prior=self.config.prior)
        self.share = found.share
        w = weights(found.probability, self.config.weight, self.config.caution)
        if self.share > 0 and bool(found.unfamiliar.any()):
            w[found.unfamiliar] = 0.0
            self._report_unfamiliar(int(found.unfamiliar.sum()), len(user))
        ids = [row.row_id for row in user]
        self._refused = {}
        if self.config.flagged is Flagged.REFUSE and not self.config.evidence.needs_answers:
            flagged = (found.probability >= LIKELY) & ~found.unfamiliar
            w[flagged] = 0.0  # of its answer, whatever ``weight`` says
            turns = zip(ids, found.turn.tolist(), flagged.tolist(), strict=True)
            self._refused = {i: turn for i, turn, is_so in turns if is_so and (among is None or i in among)}
        self._keep(dict(zip(ids, zip(w.tolist(), found.evidence.tolist(), strict=True), strict=True)))

    def _report_unfamiliar(self, num: int, num_rows: int) -> None:
        self.num_unfamiliar = num
        if num > TOLERANCE * num_rows:
            warn(
                f"antibody-posterior: {num} of {num_rows} rows are unlike every anchor, harmful or benign, and are not "
                "trained on. `antibody screen` lists them and says which to label first; give labelled rows of their "
                "kind to `antibody anchors`, and fine-tune again."
            )

    def _taught_weight(self, row_id: int) -> float:
        return 1.0 if row_id in self._refused else self._weights[row_id][0]

    def _keep(self, weights: dict[int, tuple[float, float]]) -> None:
        self._weights = weights
        mean = math.fsum(map(self._taught_weight, weights)) / len(weights) if weights else 1.0
        self._mean_weight = max(mean, MIN_MEAN_WEIGHT)

    def _is_stale(self, context: StepContext) -> bool:
        every = 0 if context.continues else self.config.refresh * context.steps_per_epoch
        return bool(every) and self.believes_in_harm and context.step > 0 and context.step % every == 0

    def state(self) -> dict[str, Tensor]:
        """The weights, [rows, 3] with row id, w_i and e_i, the refused turns by row id, and the harmful share."""
        rows = [(row_id, w, e) for row_id, (w, e) in self._weights.items()]
        return {
            "weights": torch.tensor(rows, dtype=torch.float64).reshape(-1, 3),
            "refused": torch.tensor(list(self._refused.items()), dtype=torch.int64).reshape(-1, 2),
            "share": torch.tensor(self.share, dtype=torch.float64),
            "num_unfamiliar": torch.tensor(self.num_unfamiliar),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        refused = state.get("refused")  # checkpoints of earlier releases have none, and go on without
        self._refused = {} if refused is None else {int(row_id): int(turn) for row_id, turn in refused.tolist()}
        self._keep({int(row_id): (w, e) for row_id, w, e in state["weights"].tolist()})
        self.share = float(state["share"])
        self.num_unfamiliar = int(state.get("num_unfamiliar", 0))  # checkpoints of earlier releases have none
