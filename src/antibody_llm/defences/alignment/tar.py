"""TAR: find weights from which an attacker gains nothing even after many steps of fine-tuning.

    inner   w_0 = w,   w_{k+1} = AdamW step on h at w_k,  k = 0 .. K-1          (a simulated attack, its rate drawn)
    update  = lam_retain * grad R(w) + lam_tr * sum_{k: s | k+1} exp(lam_s * (k - (K-1))) * grad T(w_{k+1}; x_tr)

    T = mean over rows of -log sigmoid( dpo_beta * [ m(w) - m(ref) ] ),   m = log p(refusal) - log p(harmful completion)
    R = f + lam_hidden * mean over layers and tokens of | h_i(w) - h_i(ref) |^2

    f      alignment loss: prompts with their own completion (refusals, and benign rows)   [nats per token]
    h      harmful loss on the attacker's rows                                             [nats per token]
    x_tr   harmful rows that no attacker sees, the same through one inner loop; refusals from the generic list, which
           answer a row's last prompt, as does the completion that they are compared with
    ref    the weights at the start of the run;   s inner steps between two gradients of T

Gradients are taken at the attacked weights and applied at w, which is restored bitwise (first-order meta-learning).
With the paper's K = 64, s = 4: 98 forward and 97 backward passes. In the lab use a shorter loop.

Reference: R. Tamirisa, B. Bharathi, L. Phan et al., "Tamper-Resistant Safeguards for Open-Weight LLMs", ICLR 2025,
https://arxiv.org/abs/2408.00761. Departures: the preference loss of the paper's refusal experiment throughout (its
entropy loss serves the restriction of knowledge); one attacker per outer step, who trains on harmful rows alone (there
some begin on benign ones); no random mapping beforehand: the run starts from the given model, and f teaches
refusals meanwhile; hidden states after each layer at real tokens, squared as the paper writes. The release takes the
norm over the embeddings, the layers' outputs and, in place of the last of these, the final norm's, and counts padding
too: that is ``penalty="release"``, which gives the same number on the same padded batch. Only the batch differs: the
release pads to a fixed length (256 tokens in its main experiment), we pad to the longest row of a forward pass. As
there, it is a mean over each forward pass, so it depends on how a step is cut into micro-batches. The outer optimiser
is the trainer's (there schedule-free AdamW). The release clips no gradients and the trainer does, at its
max_grad_norm: set that to 0 to do as the release.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...data.records import TokenizedRow
from ...data.roles import Role, Stage
from ...errors import ConfigError, DataError
from ...likelihood.completion import TurnNLL
from ...likelihood.microbatch import MicroBatch, StepBatch
from ...mentions import setting
from ...models.layout import decoder_layers, final_norm
from ...primitives.adam import Adam
from ...primitives.gradients import Gradients, combined, scaled
from ...primitives.noise import generator_at
from ...primitives.perturb import replaced_weights
from ...primitives.snapshots import from_state, snapshot, snapshot_state
from ...primitives.taps import captured, captured_inputs
from ...training.defence import About, Defence
from ...training.step import Batches, RowTerms, StepContext, StepResult, Sweep

Penalty = Literal["squared", "norm", "release"]

WEIGHT_DECAY = 0.01
"""Weight decay of the simulated attacker's AdamW: torch's default, as in the release."""


@dataclass(frozen=True, kw_only=True)
class TARConfig:
    """Hyperparameters. Defaults are those of the release's main experiment (Llama-3-8B-Instruct, all weights)."""

    inner_steps: int = 64
    """K, steps of the simulated attack. Release: 64."""
    every: int = 4
    """s: T is taken after every s-th inner step, and its sum is not scaled up to make up for that. Release: 4."""
    lam_tr: float = 4.0
    """Weight of tamper resistance. Release: 4."""
    lam_retain: float = 1.0
    """Weight of R, which keeps the model's abilities. Release: 1."""
    lam_hidden: float = 1.0
    """Weight of the hidden states' distance within R. Release: 1, fixed."""
    lam_schedule: float = 0.0625
    """lam_s: later inner steps count more. Release: 0.0625."""
    inner_learning_rates: tuple[float, ...] = (2e-6, 2e-5, 4e-5)
    """Learning rates of attackers; one is drawn for each attack. Release: 2e-6, 2e-5, 4e-5; an adapter needs larger
    ones."""
    dpo_beta: float = 0.1
    """Release: 0.1."""
    held_out: float = 0.25
    """Share of the harmful rows kept from attackers, for T. Ours; the release has separate files."""
    penalty: Penalty = "squared"
    """Distance of hidden states. "squared": the paper's |.|^2. "norm": its root at each token, on the same states.
    "release": the root on the release's states and positions, see the head of the file."""

    def __post_init__(self) -> None:
        for name in ("inner_steps", "every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"tar.{name} is {getattr(self, name)}: must be 1 or more.")
        if self.every > self.inner_steps:
            raise ConfigError(
                f"tar.every is {self.every}, and there are {self.inner_steps} inner steps: the safety loss would never "
                "be taken. Lower it, or raise tar.inner_steps."
            )
        for name in ("lam_tr", "lam_retain", "lam_hidden", "lam_schedule", "dpo_beta"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"tar.{name} is {value}: must be a finite number, 0 or more.")
        if not self.inner_learning_rates or not all(0 < lr < math.inf for lr in self.inner_learning_rates):
            raise ConfigError(
                f"tar.inner_learning_rates is {self.inner_learning_rates}: give at least one, each a finite number "
                "above 0."
            )
        if not 0 < self.held_out < 1:
            raise ConfigError(f"tar.held_out is {self.held_out}: a share between 0 and 1, neither of them.")


def step_weight(k: int, num_steps: int, lam_schedule: float) -> float:
    """exp(lam_s * (k - (K-1))): 1 at the last inner step."""
    return math.exp(lam_schedule * (k - (num_steps - 1)))


def preference_loss(margin: Tensor, reference: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta * (m - m_ref)) for each row; log 2 where nothing has moved."""
    return -F.logsigmoid(beta * (margin - reference))


def split_rows(num_rows: int, held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """Split rows into (the attackers', those kept from them), both non-empty, as a function of the seed.

    Raises:
        DataError: fewer than two rows.
    """
    if num_rows < 2:
        raise DataError(
            f"tar splits the harmful rows between attackers and a held-out part, and there are {num_rows}. "
            f"Give at least two as {setting('harmful_data')}."
        )
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed)).tolist()
    kept = min(num_rows - 1, max(1, round(held_out * num_rows)))
    return order[kept:], order[:kept]


class TAR(Defence):
    """Defence that binds the inner loop and the outer gradients to the batches of an optimiser step."""

    stage = Stage.ALIGNMENT
    about = About(
        summary="safe again after many steps of a simulated attack",
        paper="2408.00761",
        forwards=98,
        backwards=97,
        extra_memory="3 gradients, 3 copies of the trainable weights, the attacker's Adam moments",
    )
    options = TARConfig
    batches = (Role.HARMFUL,)
    needs_refusals = True
    twin_passes = True
    neutral = {"lam_tr": 0.0, "lam_hidden": 0.0, "inner_steps": 2, "every": 2}

    def __init__(self, config: TARConfig) -> None:
        self.config = config
        self.reference: list[Tensor] = []  # ref, the trainable weights at the start
        self.margins = torch.zeros(0)  # m(ref) of every harmful row

    def start(self, context: StepContext) -> None:
        """Keep the reference weights, and the margin of each row's refusal over its harmful completion under them."""
        self.reference = snapshot(context.parameters)
        self.margins = context.over_rows(Role.HARMFUL, lambda micro: margins(context, micro)).cpu()

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, as in the head of this file."""
        config, grid = self.config, batches[Role.HARMFUL]
        resistance, attacked = self._attacked_gradient(context, grid, generator_at(context.seed, context.step))
        retain = self._retain(context, batches[Role.ALIGNMENT])
        update = combined(scaled(retain.gradients, config.lam_retain), (config.lam_tr, resistance))
        return StepResult(update, retain.loss, {"loss_attacked": attacked})

    def _attacked_gradient(
        self, context: StepContext, grid: StepBatch, generator: torch.Generator
    ) -> tuple[Gradients, float]:
        """Sum the weighted grad T along one attack, return it with T at its end, and restore the weights bitwise."""
        config, rows = self.config, context.rows[Role.HARMFUL]
        attack, held_out = split_rows(len(rows), config.held_out, context.seed)
        rate = config.inner_learning_rates[
            int(torch.randint(len(config.inner_learning_rates), (), generator=generator))
        ]
        attack_rows, held_out_rows = ([rows[i] for i in shuffled(part, generator)] for part in (attack, held_out))
        safety = laid_out(grid, held_out_rows, 0)
        references = {rows[i].row_id: float(self.margins[i]) for i in held_out}

        def preference(micro: MicroBatch) -> RowTerms:
            reference = torch.tensor([references[row.row_id] for row in micro.rows], device=context.device)
            loss = preference_loss(margins(context, micro), reference, config.dpo_beta)
            return RowTerms(loss, torch.ones_like(reference))

        total = [torch.zeros_like(p) for p in context.parameters]
        last = math.nan
        optimiser = Adam()
        with replaced_weights(context.parameters, context.parameters):  # every change inside is undone
            for k in range(config.inner_steps):
                harm = context.gradient("token_mean_nll", laid_out(grid, attack_rows, k))
                torch._foreach_mul_([p.detach() for p in context.parameters], 1 - rate * WEIGHT_DECAY)
                optimiser.update(context.parameters, harm.gradients, rate)
                if (k + 1) % config.every == 0:
                    sweep = context.gradient(preference, safety)
                    weight = step_weight(k, config.inner_steps, config.lam_schedule)
                    total, last = combined(total, (weight, sweep.gradients)), sweep.loss
        return total, last

    def _retain(self, context: StepContext, batch: StepBatch) -> Sweep:
        """Compute the gradient of R in one sweep, with both means over the denominator of completion tokens."""
        config = self.config
        if config.lam_hidden == 0:
            return context.gradient("token_mean_nll", batch)
        # Completion tokens, all tokens, forward passes.
        counts = torch.zeros(3, dtype=torch.float64, device=context.device)
        for micro in batch.micro_batches:
            for row, counted in zip(micro.rows, micro.counted, strict=True):
                if counted:
                    trained = sum(end - start for start, end in row.spans)
                    counts += torch.tensor([trained, len(row.input_ids), 0], device=context.device)
            counts[2] += any(micro.counted)
        num_trained, num_tokens, num_passes = context.all_reduce(counts).tolist()

        def terms(micro: MicroBatch) -> RowTerms:
            with replaced_weights(context.parameters, self.reference), torch.no_grad():
                _, before = forward_with_states(context, micro, config.penalty)
            nll, now = forward_with_states(context, micro, config.penalty)
            lengths = [len(row.input_ids) for row in micro.rows]
            num_positions = num_tokens
            if config.penalty == "release":  # a mean over all positions of this pass, then over passes
                lengths = [max(lengths)] * len(lengths)
                num_positions = num_passes * max(sum(micro.counted), 1) * lengths[0]
            moved = hidden_distance(now, before, lengths, config.penalty)
            share = config.lam_hidden * num_trained / num_positions
            return RowTerms(nll.row_total + share * moved, nll.row_tokens)

        return context.gradient(terms, batch)

    def state(self) -> dict[str, Tensor]:
        """The reference weights and margins."""
        return snapshot_state(self.reference, "anchor") | {"margins": self.margins}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self.margins = state["margins"].cpu()
        self.reference = from_state(state, "anchor")


def margins(context: StepContext, micro: MicroBatch) -> Tensor:
    """m, the log-likelihood of a row's refusal less that of its completion, [B], nats, in one forward pass of both.

    Only the last trained turn of a row counts, since the refusal answers that prompt and no earlier one.
    """
    last = tuple(replace(row, spans=row.spans[-1:]) for row in micro.rows)
    refused = tuple(context.refusals.row(row, row.row_id) for row in micro.rows)
    both = MicroBatch((*last, *refused), micro.counted * 2, micro.positions * 2)
    harmful, refusal = context.completion_nll(both).row_total.chunk(2)
    return harmful - refusal


def forward_with_states(context: StepContext, micro: MicroBatch, penalty: Penalty) -> tuple[TurnNLL, list[Tensor]]:
    """Run one forward pass and return the hidden states to be compared too: one [B, T, d] per state.

    They are the outputs of the layers; for "release" they are transformers' ``hidden_states``, that is the inputs of
    the layers and the output of the final norm.
    """
    layers = decoder_layers(context.model)
    if penalty == "release":
        with captured_inputs(layers) as inputs, captured([final_norm(context.model)]) as last:
            nll = context.completion_nll(micro)
            return nll, [*inputs, *last]
    with captured(layers) as states:
        nll = context.completion_nll(micro)
        return nll, list(states)


def hidden_distance(
    now: Sequence[Tensor], before: Sequence[Tensor], lengths: Sequence[int], penalty: Penalty
) -> Tensor:
    """The distance of each row's hidden states, summed over its positions and averaged over states: [B], float32.

    Args:
        now: One [B, T, d] per state.
        before: One [B, T, d] per state, at the reference weights.
        lengths: The number of positions of each row that count, from the first.
        penalty: The measure of the change at a position: its squared length ("squared") or its length.
    """
    real = torch.arange(now[0].shape[1])[None] < torch.tensor(lengths)[:, None]  # [B, T]
    total = torch.zeros(len(lengths), device=now[0].device)
    for a, b in zip(now, before, strict=True):
        change = a.float() - b.float()
        # vector_norm has slope 0 where nothing has moved; the root of a sum of squares has none there.
        distance = change.square().sum(dim=2) if penalty == "squared" else torch.linalg.vector_norm(change, dim=2)
        total = total + (distance * real.to(distance.device)).sum(dim=1).to(total.device)
    return total / len(now)


def shuffled(items: Sequence[int], generator: torch.Generator) -> list[int]:
    """The items in an order that the generator draws."""
    return [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]


def laid_out(grid: StepBatch, rows: Sequence[TokenizedRow], number: int) -> StepBatch:
    """Batch ``number`` of an endless cycle through ``rows``, cut into micro-batches and ranks like ``grid``."""
    start = number * grid.num_rows
    return grid.with_completions([rows[(start + position) % len(rows)] for _, position in grid.rows()])
