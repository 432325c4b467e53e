"""What align and finetune share: check, open the folder, load, train, save."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from peft import PeftModel
from torch import nn
from transformers import TrainerCallback
from trl import DPOConfig

from ..events import inform, warned
from ..likelihood.ranks import from_first
from ..likelihood.reader import ModelReader
from ..models.adapters import add_lora
from ..models.loading import LoadedModel, load_model
from ..screening.anchors import Anchors
from ..settings import Regime, TrainingSettings, rows_of
from ..store.contents import CHECKPOINTS
from ..store.environment import environment
from ..store.folder import RunFolder, State, open_run
from ..store.result import RunResult, stored_result
from ..training.checkpoints import newest_checkpoint
from ..training.preference import PreferenceTrainer
from ..training.trainer import DefendedTrainer, StepTrainer
from .anchors import store_anchors
from .inputs import Inputs, LoraOptions, checked_inputs, run_config
from .metrics import MetricsFile, last_values
from .pairs import pair_tokens, without_left_out
from .resources import aligned_reader, before_alignment, checked_resources
from .saving import save_run
from .tokens import RunTokens, run_tokens
from .trainer_config import TrainingConfig


def train(run: TrainingSettings, *, callbacks: tuple[TrainerCallback, ...]) -> RunResult:
    """Carry the run out, go on with it, or find its stored result.

    Args:
        run: What align or finetune was given.
        callbacks: Further callbacks for the Trainer.

    Raises:
        AntibodyError: whatever a user can fix; until training begins nothing has been written.
    """
    started = time.monotonic()
    given = checked_inputs(run)
    config = run_config(run, given)
    inputs = (given.model, given.adapter, given.before, given.aligned, run.refusals, *rows_of(run).values())
    # The other ranks would look while the first one writes.
    folder = from_first(lambda: open_run(run.output, config, resume=run.resume, overwrite=run.overwrite, inputs=inputs))
    if folder.state is State.COMPLETE:
        inform(f"{folder.path}: already complete; this is its stored result.")
        return stored_result(folder.path)

    stored = _stored_anchors(given)
    dtype = _weights_dtype(run.regime, given.args)
    loaded = load_model(given.model, adapter=given.adapter, base=given.named_base, dtype=dtype, trainable_adapter=True)
    loaded = _with_trainable_weights(loaded, run.regime, given.lora, run.seed)
    tokens = _tokens(run, given, loaded)
    aligned = _aligned_reader(given, loaded, tokens, dtype)
    base = before_alignment(loaded, dtype) if given.defence.needs_base and aligned is None else None
    try:
        if _is_main_process():
            folder.begin(environment(run.seed))
        checkpoint = newest_checkpoint(folder.path / CHECKPOINTS) if folder.state is State.PARTIAL else None
        if given.beta is not None:
            tokens = without_left_out(
                tokens, given, loaded, base=base, anchors=stored, aligned_reader=aligned, checkpoint=checkpoint
            )
        trainer = _trainer(folder, loaded, given, tokens, base, stored, aligned, callbacks)
        if checkpoint is not None:
            inform(f"{folder.path}: going on from {checkpoint.name}.")
        trainer.train(resume_from_checkpoint=checkpoint)
        if _is_main_process():
            kind = save_run(folder, trainer, loaded, given.defence, given.upload.records)
            if given.anchors and given.refusals:
                store_anchors(folder.path / kind, loaded, given.anchors, given.refusals)
        result = RunResult(
            output=folder.final,
            model=folder.final / ("adapter" if run.regime == "lora" else "model"),
            metrics=last_values(trainer.state.log_history),
            seconds=time.monotonic() - started,
            num_rows=len(tokens.rows[given.main]),
            num_steps=trainer.state.global_step,
            skipped=tuple(tokens.skipped),
            warnings=warned(),
        )
        if _is_main_process():
            folder.finish(result)
    except BaseException:
        if _is_main_process():
            folder.abandon()
        raise
    return result


def _stored_anchors(given: Inputs) -> Anchors | None:
    """The anchors of the model that judges the upload: the aligned one, at the beginning of the line."""
    judge = (given.model, given.adapter) if given.aligned is None else (given.aligned, None)
    return checked_resources(given.defence, *judge, given.before, given.upload.records)


def _weights_dtype(regime: Regime, args: TrainingConfig) -> str:
    """bfloat16 is for frozen weights alone: an update of bf16 weights is mostly lost in rounding."""
    return "auto" if regime == "lora" and args.bf16 else "float32"


def _with_trainable_weights(loaded: LoadedModel, regime: Regime, lora: LoraOptions, seed: int) -> LoadedModel:
    if regime == "full" or isinstance(loaded.model, PeftModel):  # single_lora: the adapter given goes on
        return loaded
    model = add_lora(loaded.model, r=lora.r, alpha=lora.alpha, targets=lora.targets, dropout=lora.dropout, seed=seed)
    return replace(loaded, model=model)


def _tokens(run: TrainingSettings, given: Inputs, loaded: LoadedModel) -> RunTokens:
    if given.beta is None:
        return run_tokens(given, loaded, seed=run.seed, skip=run.skip_too_long)
    return pair_tokens(given, loaded, skip=run.skip_too_long)


def _trainer(
    folder: RunFolder,
    loaded: LoadedModel,
    given: Inputs,
    tokens: RunTokens,
    base: nn.Module | None,
    anchors: Anchors | None,
    aligned: Callable[[], ModelReader] | None,
    callbacks: tuple[TrainerCallback, ...],
) -> StepTrainer:
    given.args.output_dir = str(folder.path / CHECKPOINTS)
    if _is_main_process():
        callbacks = (*callbacks, MetricsFile(folder.path))
    if isinstance(given.args, DPOConfig):
        return PreferenceTrainer(
            loaded.model,
            given.args,
            rows=tokens.rows,
            rejected=tokens.rejected,
            left_out=tokens.left_out,
            processing_class=loaded.tokenizer,
            callbacks=list(callbacks),
        )
    return DefendedTrainer(
        loaded.model,
        given.args,
        defence=given.defence,
        rows=tokens.rows,
        processing_class=loaded.tokenizer,
        refusals=tokens.refusals,
        callbacks=list(callbacks),
        base=base,
        anchors=anchors,
        aligned_reader=aligned,
    )


def _aligned_reader(
    given: Inputs, loaded: LoadedModel, tokens: RunTokens, dtype: str
) -> Callable[[], ModelReader] | None:
    """What loads the model that evidence is read with, where that is not the one that is trained."""
    if given.aligned is None:
        return None
    return partial(
        aligned_reader,
        given.aligned,
        given.named_base,
        loaded.tokenizer,
        refusals=tokens.refusals,
        dtype=dtype,
        rank=given.args.process_index,
        batch_size=given.args.per_device_train_batch_size,
    )


def _is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0
