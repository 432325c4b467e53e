"""LDIFS: keep each layer's features near those of the aligned model on the same rows.

    L = CE + rho/2 * E_i sum_l |a_l(x_i; w) - a_l(x_i; w_0)|^2

    CE   token-mean NLL of the upload                                                       [nats per token]
    a_l  output of decoder layer l's feed-forward block at every token of row i, prompt included, padding excluded
    w_0  trainable weights when fine-tuning starts; |.|^2 is summed over tokens and features, E is the mean over rows

The features of w_0 come from a forward without gradient with the trainable weights of the start: with LoRA that is one
copy of the adapter, whatever it began from. With dropout both forwards have the same mask. Two forwards and one
backward.

Reference: Jishnu Mukhoti, Yarin Gal, Philip H. S. Torr, Puneet K. Dokania, Fine-tuning can cripple your foundation
model; preserving features may be the solution, TMLR 2024, https://arxiv.org/abs/2308.13320; its l2 distance in feature
space, here on the layers that the safety literature's copy (git-disl) takes and summed as there; the authors' own code
(omegafragger/ldifs_code) scales features to length 1 and takes means, with weight 10. Departures from the copy: a layer
whose term reaches 0.1 is *dropped* there, so the layers that drift most have no penalty; it counts padding; its
reference is a second model, with autograd on and with different dropout masks; it clips at 5 before the Trainer clips
at 1; its path to the layers silently matches nothing outside the Llama layout.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...likelihood.microbatch import MicroBatch
from ...models.layout import decoder_layers, mlp_of
from ...primitives.perturb import replaced_weights
from ...primitives.snapshots import from_state, snapshot, snapshot_state
from ...primitives.taps import captured
from ...training.defence import About, Defence
from ...training.step import Batches, RowRecord, RowTerms, StepContext, StepResult


@dataclass(frozen=True, kw_only=True)
class LDIFSConfig:
    """Hyperparameters."""

    rho: float = 5e-4
    """Strength, per squared unit of feature. git-disl's copy: 1e-4 on the sum over its batch of 5 rows, which is 5e-4
    on the mean over rows. 0 is plain SFT."""

    def __post_init__(self) -> None:
        if not (self.rho >= 0 and isfinite(self.rho)):
            raise ConfigError(f"ldifs.rho is {self.rho}: must be a finite number, 0 or more.")


def feature_drift(now: Sequence[Tensor], before: Sequence[Tensor], lengths: Sequence[int]) -> Tensor:
    """sum_l |a_l - a_l^0|^2 of each row: [B], float32.

    Args:
        now: One [B, T, d] per layer.
        before: One [B, T, d] per layer, at w_0.
        lengths: The number of tokens of each row; padding follows them.
    """
    mask = torch.arange(now[0].shape[1])[None, :] < torch.tensor(lengths)[:, None]  # [B, T]
    total = torch.zeros(len(lengths), device=now[0].device)
    for a, b in zip(now, before, strict=True):
        square = (a.float() - b.float()).square().sum(dim=2)
        total = total + torch.where(mask.to(square.device), square, 0.0).sum(dim=1).to(total.device)
    return total


class LDIFS(Defence):
    """Defence that adds the drift of the features to a plain step."""

    stage = Stage.FINETUNING
    about = About(
        summary="the features of every layer are held near the aligned model's",
        paper="2308.13320",
        forwards=2,
        backwards=1,
        extra_memory="1 copy of the trainable weights and 3 activations per layer",
    )
    options = LDIFSConfig
    neutral = {"rho": 0.0}

    def __init__(self, config: LDIFSConfig) -> None:
        self.config = config
        self.anchor: list[Tensor] = []  # w_0

    def start(self, context: StepContext) -> None:
        """Keep w_0."""
        if self.config.rho:
            self.anchor = snapshot(context.parameters)

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, the gradient of L in the head of this file."""
        if self.config.rho == 0:
            return super().step(context, batches)
        modules = [mlp_of(layer) for layer in decoder_layers(context.model)]
        batch = batches[Role.USER]
        tokens = sum(
            end - start
            for micro in batch.micro_batches
            for row, counted in zip(micro.rows, micro.counted, strict=True)
            for start, end in row.spans
            if counted
        )
        num_tokens = float(context.all_reduce(torch.tensor(float(tokens), device=context.device)))
        # One backward pass for two means: the one over rows is scaled to the tokens' denominator.
        share = self.config.rho / 2 * num_tokens / batch.num_rows

        def terms(micro: MicroBatch) -> RowTerms:
            # Forked, so that both forwards draw the same random numbers: with dropout the drift is 0 at w_0 too.
            with (
                torch.random.fork_rng(devices=range(torch.cuda.device_count())),
                replaced_weights(context.parameters, self.anchor),
                torch.no_grad(),
                captured(modules) as outputs,
            ):
                context.completion_nll(micro)
                before = list(outputs)
            with captured(modules) as outputs:
                nll = context.completion_nll(micro)
                now = list(outputs)
            drift = feature_drift(now, before, [len(row.input_ids) for row in micro.rows])
            return RowTerms(nll.row_total + share * drift, nll.row_tokens, score=drift.detach())

        sweep = context.gradient(terms, batch)
        assert sweep.scores is not None
        counted = torch.tensor([c for micro in batch.micro_batches for c in micro.counted], device=context.device)
        drift = float(context.all_reduce((sweep.scores * counted).sum())) / batch.num_rows
        rows = RowRecord(torch.ones_like(sweep.weights))
        return StepResult(sweep.gradients, sweep.loss, {"feature_drift": drift}, rows)

    def state(self) -> dict[str, Tensor]:
        """w_0."""
        return snapshot_state(self.anchor, "anchor")

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self.anchor = from_state(state, "anchor")
