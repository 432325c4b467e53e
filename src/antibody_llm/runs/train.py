"""What align and finetune share: read, check, open the folder, train, save."""

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from ..data.records import Record, TokenizedRow
from ..data.roles import MAIN_ROLE, Role, Stage, setting_of
from ..defences.catalogue import make_defence
from ..errors import ConfigError, DataError
from ..events import inform, warn, warned
from ..files import disk_errors
from ..likelihood.ranks import alone, from_first
from ..likelihood.refusals import Refusals
from ..mentions import setting
from ..models.adapters import PAPER_TARGETS, add_lora
from ..models.loading import LoadedModel, load_model
from ..models.names import is_adapter
from ..models.saving import save_adapter, save_model
from ..parsing import parse_options
from ..profiles import Choice, Profile, profile_of
from ..screening.anchors import Anchors, write_anchors
from ..settings import Regime, TrainingSettings, plain, rows_of, written_out
from ..store.environment import environment
from ..store.folder import CHECKPOINTS, METRICS, RunFolder, State, open_run
from ..store.naming import BASE_WEIGHTS, base_of, described_model, model_name
from ..store.result import RunResult, stored_result
from ..training.checkpoints import newest_checkpoint
from ..training.defence import Defence, Repair, needed_roles
from ..training.preparation import TrainingData
from ..training.trainer import DefendedTrainer, SFTConfig
from .anchors import check_anchor_records, score_anchors
from .encoding import ControlTokens, encode, make_renderer, render_refusals, without_forgeries
from .metrics import SAMPLES, MetricsFile, last_values, write_metrics, write_samples
from .resources import before_alignment, checked_resources
from .sources import Source, read_refusals, read_rows
from .trainer_config import make_training_config, merged_training, stored_training


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """A new adapter; the paper's. See ``models.adapters.add_lora``."""

    r: int = 32
    alpha: int = 4
    targets: str | tuple[str, ...] = PAPER_TARGETS
    dropout: float = 0.0


def train(run: TrainingSettings, *, callbacks: tuple[TrainerCallback, ...]) -> RunResult:
    """Carry the run out, go on with it, or find its stored result.

    Args:
        run: What align or finetune was given.
        callbacks: Further callbacks for the Trainer.

    Raises:
        AntibodyError: whatever a user can fix; until training begins nothing has been written.
    """
    started = time.monotonic()
    control_tokens = ControlTokens(run.control_tokens)
    name = model_name(run.model)
    adapter = None if run.adapter is None else model_name(run.adapter)
    profile = profile_of(name)
    defence, args, lora = _settings(run, profile)
    if run.regime == "full" and (adapter is not None or is_adapter(name)):
        raise ConfigError(
            f"{setting('regime', 'full')} cannot train through an adapter. Use {setting('regime', 'lora')}, or merge "
            "it into its base."
        )
    sources = _sources(run, defence, profile)
    anchors = _anchor_sources(run, profile, sources)
    texts = None
    if defence.needs_refusals or anchors:
        texts = read_refusals(run.refusals, default=profile.refusals)
    main = sources[MAIN_ROLE[run.stage]]
    _require_one_step(main.name, len(main.records), args)
    named_base = None if run.base is None else str(run.base)
    before = named_base or base_of(name, adapter)
    config: dict[str, Any] = {
        "verb": "align" if run.stage is Stage.ALIGNMENT else "finetune",
        "model": described_model(name),
        "adapter": None if adapter is None else described_model(adapter, on=name),
        "base": None if before is None else described_model(before),
        "defence": run.defence if isinstance(run.defence, str) else type(defence).__name__,
        "options": plain(getattr(defence, "config", None)),
        "regime": run.regime,
        "lora": plain(lora) if run.regime == "lora" else None,
        "seed": run.seed,
        "data": {str(role): source.described() for role, source in (sources | anchors).items()},
        "skip_too_long": run.skip_too_long,
        "control_tokens": str(control_tokens),
        "training": stored_training(args),
        "refusals": None if texts is None else list(texts),
    }
    config = written_out(run, config)
    inputs = (name, adapter, before, run.refusals, *rows_of(run).values())
    # The other ranks would look while the first one writes.
    folder = from_first(lambda: open_run(run.output, config, resume=run.resume, overwrite=run.overwrite, inputs=inputs))
    if folder.state is State.COMPLETE:
        inform(f"{folder.path}: already complete; this is its stored result.")
        return stored_result(folder.path)

    stored = checked_resources(defence, name, adapter, before, main.records)
    dtype = _weights_dtype(run.regime, args)
    loaded = load_model(name, adapter=adapter, base=named_base, dtype=dtype, trainable_adapter=True)
    loaded = _with_trainable_weights(loaded, run.regime, lora, run.seed)
    renderer = make_renderer(loaded, args.max_length)
    uploaded, refused = without_forgeries(main.records, renderer, control_tokens)
    by_role: dict[str, Sequence[Record]] = {role: source.records for role, source in sources.items()}
    given = TrainingData(by_role | {MAIN_ROLE[run.stage]: uploaded}, loaded.tokenizer, run.seed)
    prepared = defence.prepare(given).records
    wanted = dict.fromkeys((MAIN_ROLE[run.stage], *defence.batches, *defence.reads_at_start))
    records = {str(role): prepared[role] for role in wanted}
    refusals = render_refusals(texts, renderer, records) if texts and defence.needs_refusals else None
    rows, skipped = encode(records, renderer, args, skip=run.skip_too_long, refusals=refusals)
    skipped += refused
    _require_one_step(main.name, len(rows[MAIN_ROLE[run.stage]]), args)
    base = before_alignment(loaded, dtype) if defence.needs_base else None
    args.output_dir = str(folder.path / CHECKPOINTS)
    try:
        if _is_main_process():
            folder.begin(environment(run.seed))
        trainer = _trained(folder, loaded, args, defence, rows, refusals, base, stored, callbacks)
        if _is_main_process():
            kind = _save(folder, trainer, loaded, defence, main.records)
            if anchors:
                of_label = {role: source.records for role, source in anchors.items()}
                _store_anchors(folder.path / kind, loaded, of_label, cast(tuple[str, ...], texts))
        result = RunResult(
            output=folder.final,
            model=folder.final / ("adapter" if run.regime == "lora" else "model"),
            metrics=last_values(trainer.state.log_history),
            seconds=time.monotonic() - started,
            num_rows=len(rows[MAIN_ROLE[run.stage]]),
            num_steps=trainer.state.global_step,
            skipped=tuple(skipped),
            warnings=warned(),
        )
        if _is_main_process():
            folder.finish(result)
    except BaseException:
        if _is_main_process():
            folder.abandon()
        raise
    return result


# -- before anything is loaded -----------------------------------------------------------------------------------


def _settings(run: TrainingSettings, profile: Profile) -> tuple[Defence, SFTConfig, LoraOptions]:
    """The defence and the configurations of trainer and adapter, with the profile's calibration beneath."""
    name = run.defence if isinstance(run.defence, str) else type(run.defence).__name__
    options, training = profile.calibration(run.stage, name, run.regime)
    if isinstance(run.defence, str):
        defence = make_defence(run.stage, run.defence, options | dict(run.options or {}))
    elif run.options:
        raise ConfigError("options belong to a defence that is given by name; this one is an object with its own.")
    elif run.defence.stage is not run.stage:
        raise ConfigError(f"{type(run.defence).__name__} is a defence of {run.defence.stage}, not of {run.stage}.")
    else:
        defence = run.defence
    checkpoints, wanted = Path(run.output) / CHECKPOINTS, training | merged_training(run)
    args = make_training_config(checkpoints, wanted, seed=run.seed, exact=defence.twin_passes)
    lora: LoraOptions = parse_options(LoraOptions, "lora", dict(profile.adapter) | dict(run.lora or {}))
    return defence, args, lora


ANCHOR_ROLES = (Role.ANCHOR_HARMFUL, Role.ANCHOR_BENIGN)


def _sources(run: TrainingSettings, defence: Defence, profile: Profile) -> dict[Role, Source]:
    """Rows of the stage's main role and of those that the defence needs, to train or to prepare."""
    main = MAIN_ROLE[run.stage]
    needed = (main, *needed_roles(defence))
    rows_given, choice = rows_of(run), Choice.of(run)
    sources: dict[Role, Source] = {}
    for role in needed:
        given, name = rows_given.get(role), setting_of(role)
        if given is not None:
            sources[role] = read_rows(given, name=f"{name} rows", upload=role is Role.USER)
        elif brought := profile.rows(role, choice if role is main else Choice(), seed=run.seed):
            sources[role] = brought
        else:
            raise DataError(f"{type(defence).__name__} needs {role} rows and was given none. Give {setting(name)}.")
    if rows_given.get(main) is not None:
        choice.refuse(str(run.model))
    benign = rows_given.get(Role.BENIGN)
    if run.stage is Stage.ALIGNMENT and benign is not None:  # what must still be answered, learnt beside the refusals
        sources[main] = _joined(sources[main], read_rows(benign, name=f"{setting_of(Role.BENIGN)} rows"))
    for role, rows in rows_given.items():
        if (
            rows is not None
            and role not in (*needed, *ANCHOR_ROLES)
            and not (role is Role.BENIGN and run.stage is Stage.ALIGNMENT)
        ):
            warn(f"{role} rows are not used: {type(defence).__name__} does not need them.")
    return sources


def _anchor_sources(run: TrainingSettings, profile: Profile, sources: Mapping[Role, Source]) -> dict[Role, Source]:
    """The provider's anchors, both labels or none; with an alignment alone."""
    if run.stage is not Stage.ALIGNMENT:
        return {}
    anchors: dict[Role, Source] = {}
    for role in ANCHOR_ROLES:
        given = rows_of(run)[role]
        if given is not None:
            anchors[role] = read_rows(given, name=f"{setting_of(role)} rows")
        elif brought := profile.rows(role, Choice(), seed=run.seed):
            anchors[role] = brought
    if len(anchors) == 1:
        (absent,) = set(ANCHOR_ROLES) - set(anchors)
        raise DataError(f"anchors need both labels: {setting(setting_of(absent))} is missing. Give it, or neither.")
    if not anchors:
        return {}
    check_anchor_records(*(anchors[role].records for role in ANCHOR_ROLES))
    trained = {tuple(r.messages[:-1]): r for source in sources.values() for r in source.records}
    for record in anchors[Role.ANCHOR_HARMFUL].records:
        if (twin := trained.get(tuple(record.messages[:-1]))) is not None:
            raise DataError(
                f"{record.where}: the prompt is also in {twin.where}, and harmful anchors must be new to the "
                "model: after training on a prompt, refusing it looks surer than it is. Take it out of one of the two."
            )
    return anchors


def _joined(first: Source, second: Source) -> Source:
    """Both, the second one's row ids going on after the first's."""
    start = 1 + max(record.row_id for record in first.records)
    moved = [replace(record, row_id=start + record.row_id) for record in second.records]
    return Source(f"{first.name} and {second.name}", [*first.records, *moved])


def _require_one_step(source: str, num_rows: int, args: SFTConfig) -> None:
    """An upload smaller than one optimiser step would be trained as one odd step an epoch."""
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    size, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    needed = size * accumulation * num_ranks
    if num_rows < needed:
        factors = setting("batch_size", str(size))
        factors += f" x gradient_accumulation_steps {accumulation}" if accumulation > 1 else ""
        factors += f" x {num_ranks} processes" if num_ranks > 1 else ""
        raise DataError(
            f"{source}: {num_rows} rows where {needed} are needed: an optimiser step takes {factors}. Give more rows, "
            "or make the step smaller."
        )


# -- with the model ----------------------------------------------------------------------------------------------


def _weights_dtype(regime: Regime, args: SFTConfig) -> str:
    """bfloat16 is for frozen weights alone: an update of bf16 weights is mostly lost in rounding."""
    return "auto" if regime == "lora" and args.bf16 else "float32"


def _with_trainable_weights(loaded: LoadedModel, regime: Regime, lora: LoraOptions, seed: int) -> LoadedModel:
    if regime == "full" or isinstance(loaded.model, PeftModel):  # single_lora: the adapter given goes on
        return loaded
    model = add_lora(loaded.model, r=lora.r, alpha=lora.alpha, targets=lora.targets, dropout=lora.dropout, seed=seed)
    return replace(loaded, model=model)


def _trained(
    folder: RunFolder,
    loaded: LoadedModel,
    args: SFTConfig,
    defence: Defence,
    rows: Mapping[str, Sequence[TokenizedRow]],
    refusals: Refusals | None,
    before: nn.Module | None,
    stored: Anchors | None,
    given: tuple[TrainerCallback, ...],
) -> DefendedTrainer:
    callbacks: list[TrainerCallback] = list(given)
    if _is_main_process():
        callbacks.append(MetricsFile(folder.path))
    trainer = DefendedTrainer(
        loaded.model,
        args,
        defence=defence,
        rows=rows,
        processing_class=loaded.tokenizer,
        refusals=refusals,
        callbacks=callbacks,
        base=before,
        anchors=stored,
    )
    checkpoint = newest_checkpoint(folder.path / CHECKPOINTS) if folder.state is State.PARTIAL else None
    if checkpoint is not None:
        inform(f"{folder.path}: going on from {checkpoint.name}.")
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def _save(
    folder: RunFolder, trainer: DefendedTrainer, loaded: LoadedModel, defence: Defence, records: Sequence[Record]
) -> str:
    write_metrics(folder.path / METRICS, trainer.state.log_history)
    if len(trainer.row_log):
        write_samples(folder.path / SAMPLES, trainer.row_log, records)
    return save_weights(folder, trainer.context.model, loaded, defence)


def _store_anchors(
    weights: Path,
    loaded: LoadedModel,
    records: Mapping[Role, Sequence[Record]],
    refusals: Sequence[str],
) -> None:
    """Score the anchors with the weights just saved, and store them there; the work of one rank alone."""
    aligned = load_model(str(weights))
    before = None if aligned.adapter_off_is_base else load_model(loaded.base or loaded.name)
    harmful, benign = (records[role] for role in ANCHOR_ROLES)
    with alone():
        anchors = score_anchors(aligned, before, anchor_harmful=harmful, anchor_benign=benign, refusals=refusals)
    with disk_errors(weights):
        write_anchors(weights, anchors)


def save_weights(folder: RunFolder, model: nn.Module, loaded: LoadedModel, defence: Defence | Repair) -> str:
    """Write the adapter, or the whole model, with what a reader must know of it; returns the folder's name."""
    provenance = {
        "verb": folder.config["verb"],
        "defence": folder.config["defence"],
        "deployment": dataclasses.asdict(defence.deployment),
    }
    if isinstance(model, PeftModel):
        given = folder.config["model"]
        provenance[BASE_WEIGHTS] = (given["under"] or given)["weights"]
        name = "adapter"
        save_adapter(model, folder.path / name, base=loaded.name, tokenizer=loaded.tokenizer, provenance=provenance)
    else:
        name, base, whole = "model", loaded.base or loaded.name, cast(PreTrainedModel, model)
        save_model(whole, folder.path / name, tokenizer=loaded.tokenizer, base=base, provenance=provenance)
    return name


def _is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0
