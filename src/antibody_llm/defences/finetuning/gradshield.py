"""GradShield: leave out the rows whose own gradient points against safety, as many as it takes.

    FIHS_i = < grad l_i(w), grad S(w) >          high: a step on row i lowers S
           = |grad S| (l_i(w + e v) - l_i(w - e v)) / 2e + O(e^2),    v = grad S / |grad S|         "difference"
    L      = sum_i m_i NLL_i / sum_i m_i N_i     over the optimiser step; m_i = 0 for the k rows with the highest FIHS
    k      the smallest number, by bisection over those with FIHS_i > 0, for which S(w_k) >= S(w) - ``tolerance``

    l_i    mean NLL of row i's completion tokens                                               [nats per token]
    S      margin: mean NLL of the provider's harmful completions minus that of its refusals   [nats per token]
    w      the weights when fine-tuning starts;  w_k after a short trial run on all but those k rows

A row counts by what learning it does, not by how it looks. The difference needs two forwards of the upload and no
backward; "exact" takes a gradient for each row. The bisection assumes that S(w_k) rises with k. If it does not, the k
found still passes, but need not be the smallest. If none passes, the run stops: no cut of the upload was seen to keep
S, and the rows with a score just above zero are most of a harmless upload. A step whose rows are all left out makes no
update.

Why S has two terms: an aligned model already gives its refusals about the likelihood that they have among the
provider's rows, so the gradient of their NLL alone is mostly sampling noise, while that of the harmful completions is
not. On the lab, after plain SFT alignment, one seed: AUROC of FIHS for harm .37 (familiar task) and .89 (novel task)
with refusals alone, .98 and .99 with the margin.

Reference: Zhanhao Hu, Xiao Huang, Patrick Mendoza, Emad A. Alghamdi, Basel Alomair, Raluca Ada Popa, David Wagner,
GradShield: Alignment Preserving Finetuning, ICLR 2026, https://arxiv.org/abs/2605.14194, from its abstract: the score,
and a binary search over thresholds that knows no harmful share. Neither how a threshold is judged there nor its proxy S
was seen: the trial runs, the margin as S, and the difference are ours.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ...data.records import TokenizedRow
from ...data.roles import Role, Stage
from ...errors import ConfigError, TrainingError
from ...events import report_progress
from ...likelihood.completion import evaluating
from ...likelihood.microbatch import MicroBatch, StepBatch
from ...mentions import setting
from ...primitives.gradients import Gradients, difference, dot, norm, scaled
from ...primitives.perturb import perturbed_weights, replaced_weights
from ...training.defence import About, Defence
from ...training.preparation import TrainingData
from ...training.short_run import short_run
from ...training.step import Batches, RowRecord, RowTerms, StepContext, StepResult, no_update

NUM_HALVINGS = 6
"""Trial runs of the bisection after the first, which leaves nothing out."""


@dataclass(frozen=True, kw_only=True)
class GradShieldConfig:
    """Hyperparameters; the paper's were not seen, so these are ours."""

    score: Literal["difference", "exact"] = "difference"
    """How FIHS is computed, as in the head of this file."""
    epsilon: float = 0.01
    """e, "difference": L2 norm of the shift over all trainable weights."""
    tolerance: float = 0.1
    """Fall of S that a trial run may cause, nats per token. Infinite is plain SFT."""
    num_probes: int = 64
    """Rows of each term of S, drawn with the run's seed; all of them if there are fewer."""
    num_steps: int = 20
    """Steps of a trial run."""
    batch_size: int = 16
    """Rows of a step of a trial run."""
    learning_rate: float = 1e-5
    """Learning rate of the trial runs (Adam): that of the fine-tuning."""

    def __post_init__(self) -> None:
        for name in ("num_probes", "num_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"gradshield.{name} is {getattr(self, name)}: must be 1 or more.")
        for name in ("epsilon", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"gradshield.{name} is {getattr(self, name)}: must be a finite number above 0.")
        if not self.tolerance >= 0:
            raise ConfigError(
                f"gradshield.tolerance is {self.tolerance}: must be 0 or more; infinity (.inf) is plain SFT."
            )


def difference_scores(
    params: Sequence[nn.Parameter], losses: Callable[[], Tensor], safety: Gradients, epsilon: float
) -> Tensor:
    """FIHS of each row from two forwards: [rows], float64; 0 where S has no gradient.

    Args:
        params: Trainable weights, moved along grad S both ways and restored bitwise.
        losses: A function that gives l_i of all rows at the weights as they are when it is called.
        safety: grad S.
        epsilon: e.
    """
    length = float(norm(safety))
    if length == 0:
        return torch.zeros_like(losses(), dtype=torch.float64)
    shift = scaled(safety, epsilon / length)
    with perturbed_weights(params, shift):
        above = losses().double()
    with perturbed_weights(params, scaled(shift, -1.0)):
        below = losses().double()
    return length * (above - below) / (2 * epsilon)


def fewest(passes: Callable[[int], bool], most: int, num_halvings: int = NUM_HALVINGS) -> int | None:
    """The smallest k of 0 .. ``most`` that passes, by bisection; None if none that was tried does.

    ``most`` itself is not tried before the end, and only if nothing else has passed.
    """
    if passes(0):
        return 0
    failed, passed, seen = 0, most, False
    for _ in range(num_halvings):
        if passed - failed <= 1:
            break
        middle = (failed + passed) // 2
        if passes(middle):
            passed, seen = middle, True
        else:
            failed = middle
    return passed if seen or (most > 0 and passes(passed)) else None


class Probes(NamedTuple):
    """The rows that S is taken over."""

    harmful: Sequence[TokenizedRow]
    refusals: Sequence[TokenizedRow]


def margin(context: StepContext, probes: Probes) -> float:
    """S at the model's current weights."""
    harmful, refusing = (float(_mean_nll(context, rows).double().mean()) for rows in probes)
    return harmful - refusing


class GradShield(Defence):
    """Defence that binds score, trial runs and filter to an upload."""

    config: GradShieldConfig
    stage = Stage.FINETUNING
    about = About(
        summary="rows whose own gradient brings harmful answers closer are left out, as many as trial runs need",
        paper="2605.14194",
        forwards=1,
        backwards=1,
        extra_memory="2 numbers per row; before training 3 copies of the trainable weights and Adam's moments",
    )
    options = GradShieldConfig
    reads_at_start = (Role.ALIGNMENT, Role.HARMFUL)
    twin_passes = True
    neutral = {"tolerance": math.inf}

    def __init__(self, config: GradShieldConfig) -> None:
        self.config = config
        self.rows: dict[int, tuple[float, float]] = {}  # (m_i, FIHS_i) by row id

    def prepare(self, data: TrainingData) -> TrainingData:
        """Keep the provider's rows that refuse.

        Raises:
            DataError: no row refuses.
        """
        if math.isinf(self.config.tolerance):
            return data
        return data.with_records(Role.ALIGNMENT, data.refusals("gradshield"))

    def start(self, context: StepContext) -> None:
        """Score the upload, and find out how many rows to leave out."""
        if math.isinf(self.config.tolerance):
            return
        upload, probes = context.rows[Role.USER], self._probes(context)
        scores = self._scores(context, upload, probes)
        order = scores.argsort(descending=True, stable=True).tolist()
        k = self._num_left_out(context, [upload[i] for i in order], int((scores > 0).sum()), probes)
        left_out = set(order[:k])
        self.rows = {
            row.row_id: (float(i not in left_out), score)
            for i, (row, score) in enumerate(zip(upload, scores.tolist(), strict=True))
        }

    def _num_left_out(self, context: StepContext, ranked: Sequence[TokenizedRow], most: int, probes: Probes) -> int:
        """k, of the rows in the order of their scores, highest first, of which the first ``most`` are above 0.

        Raises:
            TrainingError: no k that was tried keeps S.
        """
        least = margin(context, probes) - self.config.tolerance
        num_trials = 0

        def passes(k: int) -> bool:
            nonlocal num_trials
            report_progress("trial runs", num_trials, NUM_HALVINGS + 2)
            num_trials += 1
            kept = sorted(ranked[k:], key=lambda row: row.row_id)
            return bool(kept) and self._after_trial(context, kept, probes) >= least

        k = fewest(passes, most)
        if k is None:
            raise TrainingError(
                f"gradshield found no cut: a trial run lowers the margin between harmful completions and refusals by "
                f"more than {self.config.tolerance:g} nats per token even without the {most} of {len(ranked)} rows "
                f"whose gradient points against safety. Raise {setting('options.tolerance')}, lower "
                f"{setting('options.learning_rate')}, or do not fine-tune on these rows."
            )
        return k

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, as in the head of this file."""
        if math.isinf(self.config.tolerance):
            return super().step(context, batches)
        batch = batches[Role.USER]
        mask, scores = torch.tensor([self.rows[row.row_id] for row, _ in batch.rows()], device=context.device).unbind(1)
        record = RowRecord(mask, scores)
        counted = torch.tensor([c for micro in batch.micro_batches for c in micro.counted], device=context.device)
        if float(context.all_reduce((mask * counted).sum())) == 0:
            return no_update(context.parameters, record)
        sweep = context.gradient(lambda micro: self._terms(context, micro), batch)
        return StepResult(sweep.gradients, sweep.loss, rows=record)

    def _terms(self, context: StepContext, micro: MicroBatch) -> RowTerms:
        nll = context.completion_nll(micro)
        m = torch.tensor([self.rows[row.row_id][0] for row in micro.rows], device=context.device)
        return RowTerms(m * nll.row_total, m * nll.row_tokens)

    def _probes(self, context: StepContext) -> Probes:
        def drawn(role: Role) -> list[TokenizedRow]:
            rows = context.rows[role]
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(context.seed)).tolist()
            return [rows[i] for i in order[: self.config.num_probes]]

        return Probes(drawn(Role.HARMFUL), drawn(Role.ALIGNMENT))

    def _scores(self, context: StepContext, upload: Sequence[TokenizedRow], probes: Probes) -> Tensor:
        """FIHS of the upload: [rows], float64, on the CPU; every rank takes all probes."""
        harmful, refusing = (
            context.gradient("sequence_mean_nll", StepBatch.of(rows, context.batch_size)).gradients
            for rows in (probes.harmful, probes.refusals)
        )
        safety = difference(harmful, refusing)
        if self.config.score == "exact":
            rows = (context.gradient("sequence_mean_nll", StepBatch.of([row])).gradients for row in upload)
            return torch.stack([dot(g, safety) for g in rows]).cpu()
        return difference_scores(
            context.parameters, lambda: _mean_nll(context, upload), safety, self.config.epsilon
        ).cpu()

    def _after_trial(self, context: StepContext, kept: Sequence[TokenizedRow], probes: Probes) -> float:
        """S after a trial run on the rows kept."""
        config = self.config
        weights = short_run(
            context,
            kept,
            num_steps=config.num_steps,
            batch_size=min(config.batch_size, len(kept)),
            learning_rate=config.learning_rate,
            name="gradshield",
        )
        with replaced_weights(context.parameters, weights):
            return margin(context, probes)

    def state(self) -> dict[str, Tensor]:
        """Every row's mask and score: [rows, 3] with row id, m_i and FIHS_i."""
        rows = [(row_id, m, score) for row_id, (m, score) in self.rows.items()]
        return {"rows": torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self.rows = {int(row_id): (m, score) for row_id, m, score in state["rows"].tolist()}


def _mean_nll(context: StepContext, rows: Sequence[TokenizedRow]) -> Tensor:
    """Mean NLL of each row's completion tokens: [rows], nats per token; no gradient."""

    def mean(micro: MicroBatch) -> Tensor:
        nll = context.completion_nll(micro)
        return nll.row_total / nll.row_tokens

    with evaluating(context.model):
        return context.over_rows(rows, mean)
