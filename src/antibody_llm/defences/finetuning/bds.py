"""Bayesian data scheduler: infer each row's weight together with the model that a safety set keeps safe.

    p(w, z | D_u, D_s)  ~  p(D_s | w) p(D_u | w, z) / p(D_u | z)                                flat prior   (1)
    p(D_s | w) = exp(-sum l),      p(D_u | w, z) = exp(-sum_i s_i(z) l_i(w))

    w:  L = mean_{D_s} l + mean_i s_i l_i(w)                                       a step on L, plus noise    (2)
    z:  dL/dz_j = sum_i ds_i/dz_j (l_i(w) - l_i(w')) / |I|                         a step on it, plus noise   (3)
    w': mean_i s_i l_i(w')                                                         a step on it, plus noise   (4)

    l_i  NLL of row i's completion: mean over its tokens [nats per token]           I   the user rows of a step
    s_i  weight of row i: N exp(z_i) / sum_j exp(z_j)  "softmax"   or   2 / (1 + exp(-z_i))  "sigmoid"; 1 at z = 0
    w'   safety-agnostic weights: start where w starts, see the upload alone. (3) subtracts their loss because of the
         normaliser p(D_u | z): a row loses weight if safety made it *harder* than it would be anyway
    z_i  a number per row ("scalar"), or g_phi(row), a small scorer of tokens ("neural"), which also scores unseen rows

Softmax in (3), with D_i = l_i(w) - l_i(w'):  dL/dz_j = s_j / |I| * (1[j in I] D_j - (1/N) sum_{i in I} s_i D_i): below
the weighted average goes up. In the neural form s is taken over a table of every row's last z with the step's rows
fresh, and (3) flows into phi through those alone, so that the average is taken over I too:
s_j / |I| * (D_j - sum_I s_i D_i / sum_I s_i). Without that, all of phi's scores would drift together against the table.

Langevin dynamics on the posterior of N rows has energy N * L; in terms of L with step size lr, its noise is
sqrt(2 * lr * T / N) per step, with T = 1 for the posterior and T = 0 for its mode. N * L is
N / |D_s| * sum_{D_s} l + sum_i s_i l_i: the posterior is (1) only if |D_s| = N; otherwise it has p(D_s | w) to the
power of N / |D_s|. All this is for plain steps: with Adam's, noise that is not preconditioned does not sample it.

The loss has the safety term and is a mean over rows: no options make it bit for bit the token mean on the upload, so
this is not plain SFT at any setting.

Reference: Zixuan Hu, Li Shen, Zhenyi Wang, Yongxian Wei, Dacheng Tao, Adaptive Defense against Harmful Fine-Tuning
for Large Language Models via Bayesian Data Scheduler, NeurIPS 2025, https://arxiv.org/abs/2510.27172.
Departures from the release (Egg-Hu/Bayesian-Data-Scheduler):
- It draws no noise and has no normaliser: its numbers were obtained with ``temperature=0, normaliser=False``.
- Its neural scheduler never trains: the guard of its update skips exactly that case. Ours trains.
- Its neural softmax runs over the batch, so a batch of harmful rows only cannot be down-weighted. Ours runs over
  the upload, as in its scalar form.
- It clips the scheduler's gradient to a norm of 10; that of z and phi is not clipped here.
- Its priors are off by default, and the count prior repels; the prior is flat here.
- As there, the steps on z and phi use Adam (0.9, 0.95). So do those of w', at the run's learning rate; the noise is
  added separately, not preconditioned. w has the betas and the weight decay of the run's optimiser; w' has no decay,
  and its gradient is not clipped. With any such difference the two learn at different speeds, and (3) mistakes that for
  the effect of safety. Clipping w reversed the ranking in the lab, after Antibody alignment (AUROC .14): train
  with max_grad_norm 0. The run's default is 1, and causes a warning.
- Its neural sigmoid begins at 1/2 and its linear weights at -1e-4; here every weight begins at 1.
With "sigmoid" and no normaliser every positive loss pushes every weight down, and Adam pushes all alike, so harmful and
benign rows are not separated.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ...data.records import TokenizedRow
from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...events import warn
from ...likelihood.microbatch import MicroBatch, StepBatch
from ...mentions import setting
from ...primitives.adam import Adam
from ...primitives.bag_scorer import bag_scores, new_scorer
from ...primitives.logits import Transform, data_weights, logit_gradient
from ...primitives.noise import add_noise, generator_of
from ...primitives.perturb import replaced_weights
from ...primitives.snapshots import from_state, snapshot, snapshot_state
from ...training.defence import About, Defence
from ...training.step import Batches, RowRecord, RowTerms, StepContext, StepResult, Sweep

BETAS = (0.9, 0.95)
"""Decay rates of every Adam here. Release, scripts: AdamW (0.9, 0.95)."""


@dataclass(frozen=True, kw_only=True)
class BDSConfig:
    """Hyperparameters; defaults are the paper's form with the release's step size."""

    scheduler: Literal["scalar", "neural"] = "scalar"
    """"scalar": a logit per row. "neural": a scorer of tokens, which can score rows it never saw."""
    transform: Transform = "softmax"
    """The function from logits to weights. Release: softmax."""
    scheduler_lr: float = 5e-3
    """Adam's learning rate on logits or scorer. Scripts: 5e-3. 0 leaves every weight at 1."""
    normaliser: bool = True
    """Whether (3) subtracts the loss of the safety-agnostic weights. Paper: yes. Release: no."""
    temperature: float = 1.0
    """T of the Langevin noise. Paper: 1, the posterior. Release: 0, its mode."""

    def __post_init__(self) -> None:
        for name in ("scheduler_lr", "temperature"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ConfigError(f"bds.{name} is {value}: must be a finite number, 0 or more.")


@dataclass(frozen=True)
class StepRows:
    """This rank's rows of a step, as a scheduler sees them."""

    places: Tensor  # [B]: each row's place in z
    counted: Tensor  # [B], bool: False for a repetition
    inside: Tensor  # [N], bool: the rows of the step on all ranks, I
    fresh: Tensor | None = None  # [B], with graph: g_phi of each row; None in the scalar form


class ScalarScheduler:
    """A scheduler with a logit per row of the upload, which steps along (3)."""

    def __init__(self, config: BDSConfig) -> None:
        self.config = config
        self.index: dict[int, int] = {}  # row id -> place in z
        self.logits = torch.zeros(0)  # z: [N]; in the neural form the table of last known ones
        self._adam = Adam(BETAS)

    def start(self, context: StepContext) -> None:
        """Every weight 1."""
        self.index = {row.row_id: i for i, row in enumerate(context.rows[Role.USER])}
        self.logits = torch.zeros(len(self.index), device=context.device)

    def look(self, context: StepContext, batch: StepBatch) -> StepRows:
        """Find the places of a step's rows."""
        places = torch.tensor([self.index[row.row_id] for row, _ in batch.rows()], device=context.device)
        counted = torch.tensor([c for micro in batch.micro_batches for c in micro.counted], device=context.device)
        return StepRows(places, counted, self._spread(context, places, counted, torch.ones_like(places)) > 0)

    def weights(self) -> Tensor:
        """s: [N]."""
        return data_weights(self.logits, self.config.transform)

    def learn(self, context: StepContext, step: StepRows, excess: Tensor) -> Sequence[Tensor]:
        """Take one step along (3), for ``look``'s rows with the excess losses D_i, [B]; return the tensors moved."""
        return self._moved([self.logits], [self._pull(context, step, excess, inside_only=False)])

    def finish(self, context: StepContext) -> None:
        """Do nothing: the logits are the whole schedule."""

    def score(self, rows: Sequence[TokenizedRow]) -> Tensor:
        """Refuse (ConfigError): a logit says nothing about other rows than its own."""
        raise ConfigError(
            "bds.scheduler is 'scalar', which has weights only for the rows that it was trained on. Train with "
            "scheduler=neural to score others."
        )

    def state(self) -> dict[str, Tensor]:
        """The logits by row id, and the moments of their optimiser."""
        rows = {"row_ids": torch.tensor(list(self.index), dtype=torch.int64), "logits": self.logits.cpu()}
        return rows | self._adam.state("scheduler_adam")

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self.index = {row_id: i for i, row_id in enumerate(state["row_ids"].tolist())}
        self.logits = state["logits"].clone()
        self._adam.load_state(state, "scheduler_adam")

    def _pull(self, context: StepContext, step: StepRows, excess: Tensor, *, inside_only: bool) -> Tensor:
        spread = self._spread(context, step.places, step.counted, excess)
        return logit_gradient(self.logits, spread, step.inside, self.config.transform, inside_only=inside_only)

    def _moved(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        self._adam.update(tensors, gradients, self.config.scheduler_lr)
        return tensors

    def _spread(self, context: StepContext, places: Tensor, counted: Tensor, values: Tensor) -> Tensor:
        """[N]: the values of this step's counted rows on all ranks, in their places; 0 elsewhere."""
        spread = torch.zeros(len(self.logits), device=context.device)
        spread[places[counted]] = values[counted].float()
        return context.all_reduce(spread)


class NeuralScheduler(ScalarScheduler):
    """A scheduler with a scorer of tokens, whose last scores are the table of logits."""

    def __init__(self, config: BDSConfig) -> None:
        super().__init__(config)
        self.phi: list[Tensor] = []

    def start(self, context: StepContext) -> None:
        """Begin with every weight 1 and a new scorer."""
        super().start(context)
        num_tokens = context.model.get_input_embeddings().num_embeddings  # type: ignore[operator]
        scorer = new_scorer(num_tokens, generator_of(context.seed, 0, "bds.phi"))
        self.phi = [phi.to(context.device) for phi in scorer]

    def look(self, context: StepContext, batch: StepBatch) -> StepRows:
        """Find the places of a step's rows, and put their new scores into the table."""
        step = super().look(context, batch)
        fresh = bag_scores([phi.requires_grad_() for phi in self.phi], *parts_of(row for row, _ in batch.rows()))
        table = self._spread(context, step.places, step.counted, fresh.detach())
        self.logits = torch.where(step.inside, table, self.logits)
        return replace(step, fresh=fresh)

    def learn(self, context: StepContext, step: StepRows, excess: Tensor) -> Sequence[Tensor]:
        """Take one step of phi along (3), through the scores of the step's rows; return the tensors moved."""
        assert step.fresh is not None
        pull = self._pull(context, step, excess, inside_only=True)[step.places] * step.counted
        moved = [phi.detach() for phi in self.phi]
        gradients = [context.all_reduce(g.contiguous()) for g in torch.autograd.grad(step.fresh, self.phi, pull)]
        self.phi = moved
        return self._moved(moved, gradients)

    def finish(self, context: StepContext) -> None:
        """Score every row again."""
        self.logits = self.score(context.rows[Role.USER])

    def score(self, rows: Sequence[TokenizedRow]) -> Tensor:
        """[rows]: g_phi."""
        with torch.no_grad():
            return bag_scores(self.phi, *parts_of(rows))

    def state(self) -> dict[str, Tensor]:
        """The table, the scorer, and the moments of its optimiser."""
        return super().state() | snapshot_state(self.phi, "phi")

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        super().load_state(state)
        self.phi = from_state(state, "phi")


def parts_of(rows: Iterable[TokenizedRow]) -> tuple[list[list[int]], list[list[int]]]:
    """(prompts, completions): the tokens of each row that are not trained, and those that are."""
    parts = [row.parts() for row in rows]
    return [prompt for prompt, _ in parts], [completion for _, completion in parts]


class BDS(Defence):
    """Defence that binds (2) to (4) to the rows of an optimiser step."""

    stage = Stage.FINETUNING
    about = About(
        summary="rows that stay hard for a model kept safe lose weight, inferred together with the model",
        paper="2510.27172",
        forwards=3,
        backwards=3,
        extra_memory="5 copies of the trainable weights, gradients included (1 without normaliser), 3 numbers per row",
    )
    options = BDSConfig
    batches = (Role.ALIGNMENT,)
    neutral = None

    def __init__(self, config: BDSConfig) -> None:
        self.config = config
        self.schedule = NeuralScheduler(config) if config.scheduler == "neural" else ScalarScheduler(config)
        self.agnostic: list[Tensor] = []  # w'
        self._agnostic_adam = Adam(BETAS)

    def check(self, context: StepContext) -> None:
        """Check as every defence does, and report settings that silently teach the schedule nothing, or wrong things.

        Raises:
            ConfigError: a neural softmax, with one row in each step.
        """
        super().check(context)
        neural, one_row = self.config.scheduler == "neural", context.steps_per_epoch == len(context.rows[Role.USER])
        if neural and self.config.transform == "softmax" and one_row:
            raise ConfigError(
                "bds.scheduler is 'neural' and a step has one row: the scorer learns from how the rows of a step "
                f"compare, so every weight would stay 1. Raise {setting('batch_size')}, or use "
                f"{setting('options.scheduler', 'scalar')}."
            )
        if self.config.normaliser and context.max_grad_norm > 0:
            warn(
                f"bds: the run clips the model's gradient to {context.max_grad_norm:g} and that of the safety-agnostic "
                "weights is never clipped, which can reverse the ranking of the rows. Train with "
                f"{setting('training.max_grad_norm', '0')}."
            )

    def start(self, context: StepContext) -> None:
        """Begin with every weight 1, w' = w and a new scorer."""
        self.schedule.start(context)
        if self.config.normaliser:
            self.agnostic = snapshot(context.parameters)

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, as in the head of this file."""
        user = batches[Role.USER]
        step = self.schedule.look(context, user)
        weights = self.schedule.weights()

        safe = context.gradient("sequence_mean_nll", batches[Role.ALIGNMENT])
        scheduled = self._weighted(context, user, weights)
        assert scheduled.scores is not None
        excess = scheduled.scores  # l_i(w), before the step on w
        metrics = {"loss_safe": safe.loss, "loss_user": scheduled.loss}
        update, loss = safe.gradients, safe.loss + scheduled.loss
        torch._foreach_add_(update, scheduled.gradients)
        del scheduled  # one copy of the weights less in memory while w' is swept
        if self.agnostic:
            with replaced_weights(context.parameters, self.agnostic):
                unsafe = self._weighted(context, user, weights)
            assert unsafe.scores is not None
            excess = excess - unsafe.scores
            metrics["loss_agnostic"] = unsafe.loss
            self._agnostic_adam.update(self.agnostic, unsafe.gradients, context.learning_rate)
            self._noise(context, self.agnostic, context.learning_rate, "bds.agnostic")

        record = RowRecord(weights[step.places], self.schedule.logits[step.places])
        moved = self.schedule.learn(context, step, excess)
        self._noise(context, moved, self.config.scheduler_lr, "bds.scheduler")
        return StepResult(update, loss, metrics, record)

    def after_update(self, context: StepContext) -> None:
        """Add the noise of (2) once the optimiser has taken its step."""
        self._noise(context, [p.detach() for p in context.parameters], context.learning_rate, "bds.model")

    def finish(self, context: StepContext) -> None:
        """Score every row again in the neural form."""
        self.schedule.finish(context)

    def data_weights(self) -> dict[int, float]:
        """The scheduler's current weight of every row of the upload, by row id."""
        values = data_weights(self.schedule.logits.double(), self.config.transform).tolist()
        return {row_id: values[i] for row_id, i in self.schedule.index.items()}

    def score_rows(self, rows: Sequence[TokenizedRow]) -> Tensor:
        """[rows]: g_phi of any rows, seen or not; the scheduler trusts rows with higher scores more.

        Raises:
            ConfigError: the scheduler is scalar, and has no score for rows that it was not trained on.
        """
        return self.schedule.score(rows)

    def _weighted(self, context: StepContext, batch: StepBatch, weights: Tensor) -> Sweep:
        """Gradient of mean_i s_i l_i at the model's current weights; its scores are l_i."""

        def terms(micro: MicroBatch) -> RowTerms:
            nll = context.completion_nll(micro)
            mean = nll.row_total / nll.row_tokens
            s = weights[[self.schedule.index[row.row_id] for row in micro.rows]]
            return RowTerms(s * mean, torch.ones_like(s), score=mean.detach())

        return context.gradient(terms, batch)

    def _noise(self, context: StepContext, weights: Sequence[Tensor], lr: float, name: str) -> None:
        std = (2 * lr * self.config.temperature / len(self.schedule.index)) ** 0.5
        add_noise(weights, std, seed=context.seed, step=context.step, name=name)

    def state(self) -> dict[str, Tensor]:
        """The schedule, w', and the moments of their optimisers."""
        agnostic = snapshot_state(self.agnostic, "agnostic") | self._agnostic_adam.state("agnostic_adam")
        return self.schedule.state() | agnostic

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self.schedule.load_state(state)
        self.agnostic = from_state(state, "agnostic")
        self._agnostic_adam.load_state(state, "agnostic_adam")
