"""``DefendedTrainer``: ``trl.SFTTrainer`` with the optimiser step handed to a defence.

``StepTrainer`` is what it shares with the trainer of preferences (preference.py): whole steps, the order of the rows,
checkpoints.

The Trainer keeps what it is good at: optimiser, schedule, clipping, logging, callbacks, checkpoints, ``accelerate
launch``. It no longer computes a loss. Its loop collects the micro-batches of a step (``get_batch_samples``) and calls
``training_step`` once for each; at the last one the defence runs over all of them and returns gradients.

Rows arrive tokenised (data/encode.py), so nothing of TRL's dataset preparation is used, and come from a plain loader
whose order is a function of the seed (batches.py). Under DDP the unwrapped module computes, with one explicit sum over
ranks; DDP's own hooks stay idle because its forward is never called.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import DPOConfig, SFTConfig, SFTTrainer

from ..data.records import TokenizedRow
from ..data.roles import MAIN_ROLE, setting_of
from ..errors import ConfigError, DataError, TrainingError
from ..likelihood.completion import bare
from ..likelihood.microbatch import MicroBatch, StepBatch
from ..likelihood.ranks import gather_lists
from ..likelihood.reader import ModelReader
from ..likelihood.refusals import Refusals
from ..mentions import setting
from ..primitives.shards import all_finite
from ..screening.anchors import Anchors
from .batches import Grid, RoleStream, StepLoader
from .checkpoints import load_run_state, recall_warnings, restore_unlogged, save_checkpoint, unlogged, warnings_state
from .defence import Defence
from .distribution import check_distribution, ranks_state, require_same_ranks
from .failures import explained
from .precision import float32_products
from .reporting import StepReports
from .rowlog import RowLog
from .sharded_state import read_parts
from .sharding import make_whole
from .step import Clock, StepContext, StepResult
from .unsupported import refuse_unsupported, refuse_unsupported_in_sft


class StepTrainer(Trainer):
    """The part of a trainer that does not depend on what is learnt; one of TRL's trainers does the rest.

    Args:
        model: A causal language model, with or without a PEFT adapter, its trainable parameters already chosen.
        args: TRL's configuration.
        defence: The defence of the stage.
        rows: Tokenised rows by role: the stage's main role (whose rows make an epoch) and the roles the defence needs.
        processing_class: The tokenizer.
        refusals: Generic refusals, for defences that score against them.
        callbacks: Callbacks of transformers.
        base: The model before its alignment, for defences that compare with it; by default the adapter is switched off.
        anchors: See ``StepContext``; ``aligned_reader`` too.

    Raises:
        ConfigError: a setting that this trainer cannot honour; the message says which and why.
        DataError: a role has no rows.
    """

    _metrics: dict[str, Any]

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: SFTConfig | DPOConfig,
        *,
        defence: Defence,
        rows: Mapping[str, Sequence[TokenizedRow]],
        processing_class: PreTrainedTokenizerBase,
        refusals: Refusals | None = None,
        callbacks: list[TrainerCallback] | None = None,
        base: nn.Module | None = None,
        anchors: Anchors | None = None,
        aligned_reader: Callable[[], ModelReader] | None = None,
    ) -> None:
        refuse_unsupported(args)
        self.defence = defence
        self.main_role = MAIN_ROLE[defence.stage]
        _require_rows(defence, rows)
        self._main_rows = rows[self.main_role]
        self._micro_batches: list[MicroBatch] = []
        self.last_loss, self.last_metrics = 0.0, dict[str, float]()
        self.row_log = RowLog()
        stand_in = _stand_in(len(self._main_rows))
        super().__init__(
            model=model, args=args, train_dataset=stand_in, processing_class=processing_class, callbacks=callbacks
        )
        for noisy in (PrinterCallback, ProgressCallback):
            self.remove_callback(noisy)
        self.add_callback(_DefenceCallback(self))
        self.add_callback(StepReports(self))
        check_distribution(self, model, on_pairs=isinstance(args, DPOConfig))
        self.grid = Grid(
            args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size, args.process_index
        )
        self._streams = {
            role: RoleStream(role, rows[role], self.grid, args.seed, defence.rows_per_step(role, self.grid.step_size))
            for role in defence.batches
        }
        self.clock = Clock(steps_per_epoch=self._steps_per_epoch, max_grad_norm=args.max_grad_norm or 0.0)
        self.context = StepContext(
            model,
            rows=rows,
            pad_id=int(processing_class.pad_token_id),
            refusals=refusals,
            seed=args.seed,
            rank=args.process_index,
            batch_size=args.per_device_train_batch_size,
            base=base,
            clock=self.clock,
            anchors=anchors,
            aligned_reader=aligned_reader,
        )
        self._resume_state: Mapping[str, Tensor] | None = None
        self._resumed_from: Path | None = None

    # -- what the Trainer's loop calls ---------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[MicroBatch]:
        """The micro-batches of the main role that belong to this rank."""
        return StepLoader(self._main_rows, self.grid, self.args.seed)

    def num_examples(self, dataloader: DataLoader[MicroBatch]) -> int:
        """Rows of an epoch."""
        return len(self._main_rows)

    def get_batch_samples(
        self, epoch_iterator: Iterator[MicroBatch], num_batches: int, device: torch.device
    ) -> tuple[list[MicroBatch], None]:
        """All micro-batches of the coming optimiser step, kept for the defence."""
        if self.state.global_step >= self.state.max_steps:  # resumed from a checkpoint of the last step
            self.control.should_training_stop = True  # the Trainer asks this only after a further step
            return [], None
        self._micro_batches = [next(epoch_iterator) for _ in range(num_batches)]
        return self._micro_batches, None

    def training_step(  # type: ignore[override]
        self, model: nn.Module, inputs: MicroBatch, num_items_in_batch: object = None
    ) -> Tensor:
        """Do nothing until the step's last micro-batch, and then the defence's whole step."""
        if inputs is not self._micro_batches[-1]:
            return torch.zeros((), device=self.args.device)
        self.context.model.train()
        self.clock.step, self.clock.max_steps = self.state.global_step, self.state.max_steps
        self.clock.learning_rate = self._get_learning_rate()
        batches = self._batches_of_step()
        result = self.defence.step(self.context, batches)
        self._refuse_nan(result)
        self.last_loss, self.last_metrics = result.loss, dict(result.metrics)  # not the result, which holds gradients
        for index, (p, gradient) in enumerate(zip(self.context.parameters, result.gradients, strict=True)):
            p.grad = None if index in result.frozen else gradient
        self._record(batches[self.main_role], result)
        return torch.tensor(result.loss, device=self.args.device)

    def floating_point_ops(self, inputs: object) -> int:
        """Return 0: the count would be wrong, since a defence makes as many passes as its paper says."""
        return 0

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        state = {f"defence.{name}": tensor for name, tensor in self.defence.state().items()} | self.row_log.state()
        state |= unlogged(self) | warnings_state() | ranks_state()
        save_checkpoint(self, state, partial(super()._save_checkpoint, model, trial))

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | Path | None = None, **kwargs: Any
    ) -> Any:
        """Train, or resume from a checkpoint folder with bitwise the same result."""
        if resume_from_checkpoint is not None:
            self._resume_state = load_run_state(Path(resume_from_checkpoint))
            require_same_ranks(self._resume_state, Path(resume_from_checkpoint).name)
            self._resumed_from = Path(resume_from_checkpoint)
            self.row_log.load_state(self._resume_state)
            recall_warnings(self._resume_state)
            kwargs["resume_from_checkpoint"] = str(resume_from_checkpoint)
        with explained(self), float32_products(self.args.tf32):
            ended = super().train(**kwargs)
        if self.context.sharded:
            make_whole(self.context.model)
        return ended

    # -- one step ------------------------------------------------------------------------------------------------

    def num_tokens(self, index: int) -> int:
        """Tokens that a pass over the main row at ``index`` reads."""
        return len(self._main_rows[index].input_ids)

    @property
    def _steps_per_epoch(self) -> int:
        return math.ceil(len(self._main_rows) / self.grid.step_size)

    def _batches_of_step(self) -> dict[str, StepBatch]:
        step = self.state.global_step
        done = (step % self._steps_per_epoch) * self.grid.step_size
        num_rows = min(self.grid.step_size, len(self._main_rows) - done)
        main = StepBatch(tuple(self._micro_batches), num_rows)
        batches: dict[str, StepBatch] = {self.main_role: main}
        return batches | {role: stream.at(step) for role, stream in self._streams.items()}

    def _refuse_nan(self, result: StepResult) -> None:
        finite = math.isfinite(result.loss) and all_finite(result.gradients)
        if finite:
            return
        step = self.state.global_step + 1
        raise TrainingError(
            f"step {step}: the loss is {result.loss:.4g} and its gradient is not finite everywhere, so no update was "
            "made; the last checkpoint is untouched. Lower the learning rate, or look at the rows of this step: "
            + ", ".join(str(row.row_id) for row, _ in StepBatch(tuple(self._micro_batches), 0).rows())
        )

    def _record(self, batch: StepBatch, result: StepResult) -> None:
        metrics = self._metrics["train"]
        for name, value in result.metrics.items():
            metrics[name].append(value)
        if result.rows is None:
            return
        weights = result.rows.weight.tolist()
        scores = [math.nan] * len(weights) if result.rows.score is None else result.rows.score.tolist()
        counted = [c for micro in batch.micro_batches for c in micro.counted]
        ids = [row.row_id for row, _ in batch.rows()]
        local = [entry for entry, keep in zip(zip(ids, weights, scores, strict=True), counted, strict=True) if keep]
        epoch = self.state.global_step // self._steps_per_epoch
        self.row_log.add(epoch, self.state.global_step, gather_lists(list(local)))  # type: ignore[arg-type]


class DefendedTrainer(StepTrainer, SFTTrainer):
    """Trains ``model`` under ``defence``, on the arguments of ``StepTrainer``.

    ``packing`` and ``padding_free`` are refused: they merge rows.
    """

    _tag_names = ["antibody"]
    loss_is_scaled_for_ga = True  # type: ignore[assignment]

    def __init__(self, model: PreTrainedModel | PeftModel, args: SFTConfig, *, defence: Defence, **others: Any) -> None:
        refuse_unsupported_in_sft(args)
        args.dataset_kwargs = {"skip_prepare_dataset": True}
        super().__init__(model, args, defence=defence, **others)


class _DefenceCallback(TrainerCallback):
    """Calls the defence where the Trainer's loop calls its callbacks."""

    def __init__(self, trainer: StepTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        trainer.context.adopt()
        trainer.clock.step, trainer.clock.max_steps = state.global_step, state.max_steps
        if trainer.defence.twin_passes:
            _refuse_dropout(trainer.context.model, type(trainer.defence).__name__)
        trainer.defence.check(trainer.context)
        if trainer._resume_state is None:
            trainer.defence.start(trainer.context)
        else:
            restore_unlogged(trainer, trainer._resume_state)
            saved, prefix, context = trainer._resume_state, "defence.", trainer.context
            state = {k: v.to(context.device) for k, v in saved.items() if k.startswith(prefix)}
            if context.sharded:
                assert trainer._resumed_from is not None, "it has a state"
                state |= read_parts(trainer._resumed_from, context.parameters[0])
            trainer.defence.load_state({k.removeprefix(prefix): v for k, v in state.items()})

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.defence.after_update(self.trainer.context)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.defence.finish(self.trainer.context)


def _stand_in(num_rows: int) -> datasets.Dataset:
    """A data set of the kind that the Trainer wants; ours is read through ``get_train_dataloader`` alone."""
    return datasets.Dataset.from_dict({"input_ids": [[0]] * num_rows, "labels": [[0]] * num_rows})


def _refuse_dropout(model: nn.Module, defence: str) -> None:
    """Refuse dropout: two passes with it compute two functions, and most of their difference comes from that."""
    found = [f"{name} ({m.p:g})" for name, m in model.named_modules() if isinstance(m, nn.Dropout) and m.p > 0]
    if share := getattr(bare(model).config, "attention_dropout", 0):  # a plain function in most models, not a module
        found.append(f"attention_dropout of its config ({share:g})")
    if found:
        raise ConfigError(
            f"{defence} compares passes that must compute the same function, and the model has dropout: {found[0]}. "
            f"Set it to 0 (that of a new adapter is {setting('lora.dropout', '0')})."
        )


def _require_rows(defence: Defence, rows: Mapping[str, Sequence[TokenizedRow]]) -> None:
    for role in (MAIN_ROLE[defence.stage], *defence.batches, *defence.reads_at_start):
        if not rows.get(role):
            raise DataError(
                f"{type(defence).__name__} needs {role} rows and was given none. Give {setting(setting_of(role))}."
            )
