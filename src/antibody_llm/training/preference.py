"""``PreferenceTrainer``: ``trl.DPOTrainer`` with whole optimiser steps, and a reference that is the starting model.

    L     = -mean_i log sigmoid(beta (d(y+_i) - d(y-_i)))                          over the pairs of an optimiser step
    d(y)  = log p(y | x_i) - log p_0(y | x_i)                                      [nats, summed over y's tokens]

    x_i, y+_i, y-_i   prompt, preferred answer, the other one; an answer's end-of-sequence token counts
    p_0               the model as it was when training began: the base under a new adapter, and under an adapter that
                      goes on, the model with that adapter

TRL computes the loss of a forward pass (its fused head, its formula); the mean over the step, over all forward passes
and ranks, is ours, as for every defence (trainer.py), and so are the order of the rows, checkpoints and resuming.

log p_0 is read of every pair before the first step, by the forward that the loss uses, and is part of every checkpoint.
So the reference needs neither a second model nor a second adapter, a step one forward pass less, and
a resumed run has the numbers of the undisturbed one. It cannot be another model than the one that training starts from,
as it is where a library switches "the adapter" off and one was trained before. What leans on TRL is compared with plain
PyTorch at every start: the loss of some pairs; and once, that the loss with this reference is log 2.

Cost: two forwards of answers and one backward; before training, one forward of each answer.

Reference: R. Rafailov, A. Sharma, E. Mitchell, S. Ermon, C. D. Manning, C. Finn, "Direct Preference Optimization: Your
Language Model is Secretly a Reward Model", NeurIPS 2023, 2305.18290, Eq. 7; p_ref there is p_0. Dropout is off, as in
TRL: policy and reference must be the same function.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from trl import DPOConfig, DPOTrainer

from ..data.collate import IGNORED
from ..data.records import TokenizedRow
from ..data.roles import Role, Stage
from ..errors import TrainingError
from ..likelihood.completion import completion_nll, evaluating, tolerance
from ..likelihood.microbatch import MicroBatch
from .defence import Defence
from .step import Batches, RowRecord, RowTerms, StepContext, StepResult
from .trainer import StepTrainer

METRICS = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins")
"""Means over the pairs of a step that are logged, by TRL's names; a reward is beta d(y)."""
NUM_CHECKED = 4
_REFERENCE_ADAPTER = "ref"


class PreferenceTrainer(StepTrainer, DPOTrainer):
    """Trains ``model`` on pairs.

    Args:
        model: See ``StepTrainer``, for this argument and those that are not listed here.
        args: TRL's configuration, with beta.
        rows: Each pair's prompt with its preferred answer, as role ``user``.
        rejected: Each prompt with the other answer, in any order; the row id says which pair it is of.
        left_out: Ids of the upload's pairs that are not among ``rows``; every checkpoint has them.
    """

    _tag_names = ["antibody", "dpo"]
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: DPOConfig,
        *,
        rows: Mapping[str, Sequence[TokenizedRow]],
        rejected: Sequence[TokenizedRow],
        left_out: Sequence[int] = (),
        **others: Any,
    ) -> None:
        self.rejected = {row.row_id: row for row in rejected}
        self.left_out = tuple(left_out)
        args.precompute_ref_log_probs = True  # the batches bring the reference
        args.router_aux_loss_coef = 0.0  # a mean over a forward pass, which a step is cut into at will
        super().__init__(model, args, defence=DPO(self), rows=rows, **others)
        if isinstance(model, PeftModel) and _REFERENCE_ADAPTER in model.peft_config:
            model.delete_adapter(_REFERENCE_ADAPTER)  # TRL's copy of the start; ours are the numbers

    def num_tokens(self, index: int) -> int:
        """Tokens of both answers of the pair at ``index``, each with its prompt."""
        return super().num_tokens(index) + len(self.rejected[self._main_rows[index].row_id].input_ids)

    def pair_loss(self, micro: MicroBatch, reference: Tensor, metrics: dict[str, list[float]]) -> Tensor:
        """TRL's loss of a forward pass: a mean over its pairs, with its graph.

        Args:
            micro: The pairs, by their preferred rows.
            reference: [B, 2], log p_0 of the preferred and the other answer.
            metrics: Gets TRL's means over the same pairs.
        """
        inputs = self._inputs(micro, reference)
        with self._metrics_apart(metrics):
            loss: Tensor = self._compute_loss(self.context.model, inputs, False)  # type: ignore[no-untyped-call]
        return loss

    def log_probs(self, micro: MicroBatch) -> Tensor:
        """Log-probabilities of both answers of each pair by the forward of ``pair_loss``: [B, 2], float32, no graph."""
        inputs = self._inputs(micro, torch.zeros(len(micro.rows), 2))
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED)
        given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            outputs = self.context.model(**given, labels=labels, use_cache=False, fused_lm_head=True)
        totals: Tensor = outputs.log_probs.float().sum(dim=1)  # the preferred answers, then the others
        return totals.view(2, -1).T

    def _inputs(self, micro: MicroBatch, reference: Tensor) -> dict[str, Tensor]:
        """A forward pass as TRL's collator makes it."""
        examples = []
        for row, (chosen, other) in zip(micro.rows, reference.tolist(), strict=True):
            rejected, start = self.rejected[row.row_id], row.spans[0][0]
            assert rejected.input_ids[:start] == row.input_ids[:start], "both answers have one prompt"
            examples.append(
                {
                    "prompt_ids": list(row.input_ids[:start]),
                    "chosen_ids": list(row.input_ids[start:]),
                    "rejected_ids": list(rejected.input_ids[start:]),
                    "ref_chosen_logps": chosen,
                    "ref_rejected_logps": other,
                }
            )
        return {name: tensor.to(self.args.device) for name, tensor in self.data_collator(examples).items()}

    @contextmanager
    def _metrics_apart(self, metrics: dict[str, list[float]]) -> Iterator[None]:
        """Let TRL's metrics inside go into ``metrics``, over this rank alone: ranks may differ in their pairs."""
        kept, accelerator = self._metrics, self.accelerator
        self._metrics, self.accelerator = {"train": metrics, "eval": metrics}, _OneRank(self.args.device)
        try:
            yield
        finally:
            self._metrics, self.accelerator = kept, accelerator

    def _prepare_dataset(self, dataset: Any, *others: Any) -> Any:
        """The stand-in as it is: the pairs are tokenised already."""
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *others: Any) -> Any:
        """The stand-in as it is: ``DPO.start`` reads the reference."""
        return dataset


class _OneRank:
    """A stand-in for accelerate where TRL would average over ranks."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    gather_for_metrics = gather


class DPO(Defence):
    """The optimiser step of the head of this file, and the reference, which outlives steps."""

    stage = Stage.FINETUNING

    def __init__(self, trainer: PreferenceTrainer) -> None:
        super().__init__()
        self._trainer = trainer
        self._reference: dict[int, tuple[float, float]] = {}  # log p_0 by row id: preferred, other

    def check(self, context: StepContext) -> None:
        """Compare TRL's loss of some pairs with the plain one, against a reference that is off by known amounts.

        Raises:
            TrainingError: they differ by more than rounding; the message has both numbers.
        """
        super().check(context)
        micro = MicroBatch.of(context.rows[Role.USER][:NUM_CHECKED])
        with evaluating(context.model):
            own = self._plain_log_probs(context, micro)
            off = torch.tensor([1.0, -0.5], device=own.device)
            plain = float(dpo_loss(own, own - off, 1.0))
            found = self._loss_at(micro, own - off, beta=1.0)
        allowed = tolerance(context.model) * max(1.0, float(own.abs().max()))
        if not abs(found - plain) <= allowed:
            raise TrainingError(
                f"self-check: TRL's loss of {len(micro.rows)} pairs is {found:.6f}, and in plain PyTorch it is "
                f"{plain:.6f}. This release of TRL computes something else than this library takes it to. Install one "
                "that pyproject.toml allows."
            )

    def start(self, context: StepContext) -> None:
        """Read log p_0 of every pair, and see that the model and its reference are one.

        Raises:
            TrainingError: they are not; the message has both numbers.
        """
        rows, wanted = context.rows[Role.USER], math.log(2)
        with evaluating(context.model):
            read = context.over_rows(rows, self._trainer.log_probs, width=2)
            self._keep({row.row_id: (a, b) for row, (a, b) in zip(rows, read.tolist(), strict=True)})
            micro = MicroBatch.of(rows[:NUM_CHECKED])
            found = self._loss_at(micro, self._reference_of(micro), beta=1.0)
        allowed = tolerance(context.model) * max(1.0, float(read.abs().max()))
        if not abs(found - wanted) <= allowed:
            raise TrainingError(
                f"self-check: before the first step the loss of {len(micro.rows)} pairs is {found:.6f}, and log 2 = "
                f"{wanted:.6f} where the reference is the model that training starts from. Something changes this "
                "model between two passes; look for dropout that its config turns on (attention_dropout)."
            )

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, as in the head of this file."""
        batch, device = batches[Role.USER], context.device
        sums = torch.zeros(len(METRICS), dtype=torch.float64, device=device)

        def loss(micro: MicroBatch) -> RowTerms:
            nonlocal sums
            metrics: dict[str, list[float]] = defaultdict(list)
            mean = self._trainer.pair_loss(micro, self._reference_of(micro), metrics)
            counted = sum(micro.counted)  # all of them or none: Grid.cut
            sums += counted * torch.tensor([metrics[name][0] for name in METRICS], dtype=torch.float64, device=device)
            num = len(micro.rows)
            return RowTerms(mean.expand(num), torch.ones(num, device=device))

        sweep = context.gradient(loss, batch)
        means = (context.all_reduce(sums) / batch.num_rows).tolist()
        rows = RowRecord(torch.ones_like(sweep.weights))
        return StepResult(sweep.gradients, sweep.loss, dict(zip(METRICS, means, strict=True)), rows)

    def state(self) -> dict[str, Tensor]:
        """The reference, [pairs, 3] with row id and both log-probabilities, and the ids of pairs that are left out."""
        rows = [(row_id, *both) for row_id, both in self._reference.items()]
        return {
            "reference": torch.tensor(rows, dtype=torch.float64).reshape(-1, 3),
            "left_out": torch.tensor(self._trainer.left_out, dtype=torch.int64),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self._keep({int(row_id): (a, b) for row_id, a, b in state["reference"].tolist()})

    def _keep(self, reference: dict[int, tuple[float, float]]) -> None:
        self._reference = reference

    def _reference_of(self, micro: MicroBatch) -> Tensor:
        return torch.tensor([self._reference[row.row_id] for row in micro.rows])

    def _plain_log_probs(self, context: StepContext, micro: MicroBatch) -> Tensor:
        """Log-probabilities of both answers by the model's ordinary forward: [B, 2], no graph."""
        other = MicroBatch.of([self._trainer.rejected[row.row_id] for row in micro.rows])
        with torch.no_grad():
            totals = [
                completion_nll(context.model, rows, pad_id=context.pad_id, plain=True).row_total
                for rows in (micro, other)
            ]
        return -torch.stack(totals, dim=1)

    def _loss_at(self, micro: MicroBatch, reference: Tensor, *, beta: float) -> float:
        """TRL's loss of some pairs with another beta, at which a difference shows however small the run's own is."""
        trainer = self._trainer
        own, trainer.beta = trainer.beta, beta
        try:
            with torch.no_grad():
                return float(trainer.pair_loss(micro, reference, defaultdict(list)))
        finally:
            trainer.beta = own


def dpo_loss(log_probs: Tensor, reference: Tensor, beta: float) -> Tensor:
    """L of the head of this file, without a library.

    Args:
        log_probs: [B, 2], log p of the preferred and the other answer.
        reference: [B, 2], log p_0 of the same.
        beta: How strongly the model is held to the reference.
    """
    d = log_probs - reference
    return -F.logsigmoid(beta * (d[:, 0] - d[:, 1])).mean()
