"""A run's SFTConfig: TRL's defaults, ours where they differ, then what the user set."""

import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, cast, get_type_hints

import torch
from transformers import get_scheduler
from transformers.integrations import get_available_reporting_integrations
from trl import DPOConfig, SFTConfig, SFTTrainer

from ..errors import ConfigError
from ..events import warn
from ..mentions import setting
from ..parsing import nearest, parse_value
from ..settings import TrainingSettings
from ..text import cut, quoted

TrainingConfig = SFTConfig | DPOConfig

RESERVED = {"output_dir": "output", "seed": "seed", "resume_from_checkpoint": "resume", "beta": "beta"}
"""Fields of SFTConfig or DPOConfig that are settings of their own here."""

HONOURED = (
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length"),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "weight_decay"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("bf16", "tf32", "use_cpu", "full_determinism"),
    *("activation_checkpointing", "activation_checkpointing_kwargs"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs"),
    *("logging_strategy", "logging_steps", "logging_first_step", "report_to", "run_name"),
    *("save_strategy", "save_steps", "save_total_limit", "ddp_backend", "ddp_timeout"),
)
"""Fields that may be set. Each of them does what SFTConfig says, and is in config.yaml."""

REFUSED: dict[str, tuple[str, ...]] = {
    "the rows are already encoded when the trainer sees them, with the tokenizer in the model's folder; change it "
    "there": ("chat_template_path", "eos_token", "pad_token"),
    "the rows are encoded, padded and ordered by this library, one by one": (
        *("dataset_text_field", "dataset_kwargs", "dataset_num_proc", "shuffle_dataset", "pad_to_multiple_of"),
        *("remove_unused_columns", "label_names", "train_sampling_strategy", "length_column_name", "data_seed"),
        *("dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order"),
        *("accelerator_config", "include_num_input_tokens_seen"),
    ),
    "completions are trained and prompts are not, always": ("completion_only_loss", "assistant_only_loss"),
    f"a row is never cut: one that is too long is refused, or left out with {setting('skip_too_long')}": (
        "truncation_mode",
    ),
    "it merges rows, and the weight of a row would no longer be known": (
        *("packing", "packing_strategy", "padding_free", "eval_packing"),
    ),
    "a defence defines its own loss": ("loss_type", "label_smoothing_factor", "router_aux_loss_coef"),
    "its gradient scaler cannot see the gradients that a defence sets; use bf16": ("fp16",),
    "its loss does not tell rows apart": ("use_liger_kernel", "liger_kernel_config"),
    "a defence compares passes that must see the same function": ("neftune_noise_alpha",),
    "the batch size is part of a defence's definition": ("auto_find_batch_size",),
    "a defence computes its step itself, so that this would have no effect": (
        *("torch_compile", "torch_compile_backend", "torch_compile_mode", "use_cache", "torch_empty_cache_steps"),
        *("activation_offloading", "average_tokens_across_devices", "logging_nan_inf_filter"),
        *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph"),
        *("do_train", "do_predict", "debug", "skip_memory_metrics", "log_on_each_node"),
    ),
    "optimisers read only some of these, and ignore the others in silence; use the fields of their own": (
        *("optim_args", "optim_target_modules"),
    ),
    "nothing is evaluated while a model is trained; measure it afterwards with antibody evaluate": (
        *("do_eval", "eval_strategy", "eval_steps", "eval_delay", "per_device_eval_batch_size", "prediction_loss_only"),
        *("eval_on_start", "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps"),
        *("include_for_metrics", "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval"),
        *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    ),
    "a killed run would go on to another end than an undisturbed one": (
        *("save_only_model", "ignore_data_skip", "restore_callback_states_from_checkpoint", "enable_jit_checkpoint"),
        "save_on_each_node",
    ),
    "nothing is uploaded; push the finished folder yourself": (
        *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
        *("hub_revision", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    ),
    "the command line shows its own messages and progress": ("log_level", "log_level_replica", "disable_tqdm"),
    f"the model is loaded before the trainer is made; use {setting('model')}": (
        "model_init_kwargs",
        "trust_remote_code",
    ),
    "the loss is the paper's, and its reference the model that training starts from": (
        *("loss_weights", "ld_alpha", "f_divergence_type", "f_alpha_divergence_coef", "label_smoothing"),
        *("use_weighting", "discopop_tau", "disable_dropout", "precompute_ref_log_probs", "precompute_ref_batch_size"),
        *("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"),
    ),
    "how a run is shared out is up to whoever starts its processes: accelerate launch with DDP or FSDP2 "
    "(docs/scale.md has the configurations); DeepSpeed is not supported": (
        *("fsdp", "fsdp_config", "deepspeed", "parallelism_config"),
    ),
    "it is set by whoever starts the processes": ("local_rank",),
}
"""Fields that may not be set to anything but their default, by the reason."""

_WHY = {name: why for why, names in REFUSED.items() for name in names}

NOT_STORED = ("report_to", "run_name")
"""Fields that say nothing about the result."""

OPTIMISERS = (
    *("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"),
    *("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit"),
)
"""Others need arguments of their own, or make their update while gradients are still computed (LOMO, layer-wise)."""

OWN_SETTINGS = {
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "learning_rate": "learning_rate",
}
"""Fields that also have a setting of their own."""


def default_training(*, exact: bool = False) -> dict[str, Any]:
    """Our defaults where they differ from TRL's; ``exact`` turns bf16 off on a GPU too."""
    cuda = torch.cuda.is_available()
    ours: dict[str, Any] = {
        "logging_steps": 1,  # a resumed run logs what an undisturbed one does
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_steps": 0.2,  # share of the run: five checkpoints
        "save_total_limit": 2,
        "bf16": cuda and not exact,
    }
    if not cuda:
        ours |= {"use_cpu": True, "gradient_checkpointing": False, "dataloader_pin_memory": False}
    return ours


def merged_training(settings: TrainingSettings) -> dict[str, Any]:
    """Fields of SFTConfig, those with a setting of their own included.

    Raises:
        ConfigError: one is given both ways.
    """
    merged = dict(settings.training or {})
    for name, own in OWN_SETTINGS.items():
        if (value := getattr(settings, own)) is not None:
            if name in merged:
                raise ConfigError(f"training.{name} and {setting(own)} are both given. Give one of them.")
            merged[name] = value
    return merged


def make_training_config(
    checkpoints: Path,
    training: Mapping[str, Any],
    *,
    seed: int,
    exact: bool = False,
    beta: float | None = None,
) -> TrainingConfig:
    """The configuration of the trainer.

    Args:
        checkpoints: Where checkpoints go.
        training: Fields of SFTConfig or DPOConfig, as parsed from YAML or as text from the command line.
        seed: The seed of everything random.
        beta: DPO's; None for supervised training.
        exact: Whether the defence needs float32 (``Defence.twin_passes``); bf16 is then the user's own choice.

    Raises:
        ConfigError: an unknown field (the nearest name is offered) or an impossible value; names the setting.
    """
    check_seed(seed)
    kind: type[Any] = SFTConfig if beta is None else DPOConfig
    values = default_training(exact=exact) | parse_training(training, kind)
    if beta is not None:
        values["beta"] = beta
    _check(values)
    if exact and values["bf16"]:
        warn(
            "training.bf16: this defence compares passes that differ by a small perturbation, of which bf16 rounds "
            "away a part (at Booster's alpha on a LoRA factor a quarter of its direction). Leave it off."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gradient_checkpointing has a newer name, which older releases lack
            config: TrainingConfig = kind(output_dir=str(checkpoints), seed=seed, **values)
            _try_optimiser(config)
    except (ValueError, TypeError, ImportError, ZeroDivisionError, OverflowError) as error:
        raise ConfigError(f"training: {error}") from error
    return config


def check_seed(seed: int) -> None:
    """Raise ConfigError unless every generator takes the seed."""
    if not 0 <= seed < 2**32:
        raise ConfigError(f"{setting('seed')} is {quoted(seed)}: a whole number from 0 to 4294967295 is needed.")


def check_training(training: Mapping[str, Any]) -> None:
    """Raises ConfigError as ``make_training_config`` does where fields of SFTConfig are given long before a run."""
    _check(default_training() | parse_training(training))


def parse_training(training: Mapping[str, Any], kind: type[TrainingConfig] = SFTConfig) -> dict[str, Any]:
    """Each field with the type that ``kind`` gives it; fields that are refused are not among them.

    Raises:
        ConfigError: a field that is unknown, refused, or of another type.
    """
    types, defaults = get_type_hints(kind), {field.name: _default(field) for field in fields(kind)}
    parsed = {}
    for name, value in training.items():
        if name in RESERVED and name in defaults:
            raise ConfigError(f"training.{name}: set with {setting(RESERVED[name])}.")
        if name not in defaults:
            shown = cut(str(name), 200)
            raise ConfigError(
                f"training.{shown}: {kind.__name__} has no such field{nearest(shown, HONOURED)}", field="training"
            )
        if name in HONOURED:
            parsed[name] = parse_value(types[name], value, _called(name), field=_field(name))
        elif not _is_default(value, defaults[name]):
            why = _WHY.get(name, "this release of TRL is newer than this library, which does not know it")
            raise ConfigError(f"training.{name} cannot be set to {quoted(value)}: {why}.", field=_field(name))
    return parsed


def stored_training(config: TrainingConfig) -> dict[str, Any]:
    """Every field that could have been set, as plain values, for config.yaml."""
    values: dict[str, Any] = config.to_dict()  # type: ignore[no-untyped-call]
    return {name: values[name] for name in HONOURED if name in values and name not in NOT_STORED}


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _is_default(value: Any, default: Any) -> bool:
    """Whether a default was written out: True and 1 are not the same."""
    return bool(value == default) and isinstance(value, bool) is isinstance(default, bool)


def _try_optimiser(config: TrainingConfig) -> None:
    """Make the optimiser and the schedule once, on a weight of their own, before anything is loaded.

    Raises:
        ValueError: or another of the kinds that these libraries raise where they cannot be made as configured.
    """
    cls, options = SFTTrainer.get_optimizer_cls_and_kwargs(config)
    optimiser = cls([torch.nn.Parameter(torch.zeros(1))], **options)
    num_steps = config.max_steps if config.max_steps > 0 else 1000
    schedule = get_scheduler(
        config.lr_scheduler_type,
        optimiser,
        num_warmup_steps=config.get_warmup_steps(num_steps),
        num_training_steps=num_steps,
        scheduler_specific_kwargs=cast(dict[str, Any] | None, config.lr_scheduler_kwargs),
    )
    for step in (0, 1, num_steps // 2, num_steps - 1):
        for factor in getattr(schedule, "lr_lambdas", ()):
            if not 0 <= factor(step) < math.inf:
                raise ValueError(f"the schedule's learning rate is {factor(step):g} times the peak at step {step}")


def _field(name: str) -> str:
    return (OWN_SETTINGS | RESERVED).get(name, f"training.{name}")


def _called(name: str) -> str:
    own = _field(name)
    return own if own.startswith("training.") else setting(own)


_NOT_REENTRANT = (
    "{use_reentrant: false}, or left out: reentrant checkpointing does not work with gradients taken by autograd.grad"
)


def _is_whole_or_share(value: float) -> bool:
    return 0 < value <= 1 or (value < math.inf and value == int(value))


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "learning_rate": (lambda v: 0 < v <= 1, "above 0 and at most 1"),
    "beta": (lambda v: 0 < v < math.inf, "above 0 and finite"),
    "num_train_epochs": (lambda v: 0 < v <= 10_000, "above 0 and at most 10000"),
    "per_device_train_batch_size": (lambda v: 1 <= v < 2**31, "1 or more rows"),
    "gradient_accumulation_steps": (lambda v: 1 <= v < 2**31, "1 or more"),
    "max_steps": (lambda v: v == -1 or 1 <= v < 2**31, "1 or more, or -1 for whole epochs"),
    "max_length": (lambda v: v is None or v >= 2, "2 tokens or more"),
    "max_grad_norm": (lambda v: 0 <= v < math.inf, "0 (no clipping) or more"),
    "weight_decay": (lambda v: 0 <= v <= 1, "from 0 to 1"),
    "adam_beta1": (lambda v: 0 <= v < 1, "0 or more and below 1"),
    "adam_beta2": (lambda v: 0 <= v < 1, "0 or more and below 1"),
    "adam_epsilon": (lambda v: 0 < v <= 1, "above 0 and at most 1"),
    "warmup_steps": (lambda v: v == 0 or _is_whole_or_share(v), "a whole number, or below 1 a share of all steps"),
    "save_steps": (lambda v: v > 0 and _is_whole_or_share(v), "a whole number, or below 1 a share of all steps"),
    "logging_steps": (lambda v: v > 0 and _is_whole_or_share(v), "a whole number, or below 1 a share of all steps"),
    "save_total_limit": (lambda v: v is None or v >= 1, "1 or more checkpoints"),
    "ddp_timeout": (lambda v: 1 <= v < 2**31, "1 second or more"),
    "ddp_backend": (lambda v: v in (None, "nccl", "gloo"), "nccl or gloo"),
    "optim": (lambda v: str(getattr(v, "value", v)) in OPTIMISERS, f"one of {', '.join(OPTIMISERS)}"),
    "save_strategy": (lambda v: str(getattr(v, "value", v)) in ("no", "steps", "epoch"), "no, steps or epoch"),
    "lr_scheduler_type": (
        lambda v: str(getattr(v, "value", v)) not in ("reduce_lr_on_plateau", "greedy"),
        "a schedule that needs no evaluation while training",
    ),
    "lr_scheduler_kwargs": (
        lambda v: v is None or isinstance(v, Mapping),
        "names with values, such as {num_cycles: 2}",
    ),
    "activation_checkpointing_kwargs": (lambda v: v is None or v == {"use_reentrant": False}, _NOT_REENTRANT),
    "gradient_checkpointing_kwargs": (lambda v: v is None or v == {"use_reentrant": False}, _NOT_REENTRANT),
}


def _check(values: Mapping[str, Any]) -> None:
    for name, (holds, needed) in _RULES.items():
        if name in values and not holds(values[name]):
            raise ConfigError(f"{_called(name)} is {quoted(values[name])}: it must be {needed}.", field=_field(name))
    if values.get("lr_scheduler_kwargs") and str(values.get("lr_scheduler_type", "linear")).startswith("constant"):
        raise ConfigError("training.lr_scheduler_kwargs: a constant schedule takes none. Leave them out.")
    if values.get("ddp_backend") and "WORLD_SIZE" not in os.environ:
        raise ConfigError("training.ddp_backend: this is one process. Leave it out, or start several (torchrun).")
    named = values.get("report_to") or []
    for reporter in [named] if isinstance(named, str) else named:
        _check_reporter(reporter)


def _check_reporter(name: str) -> None:
    installed = get_available_reporting_integrations()
    if name not in ("none", *installed):
        there = f"is none of those that are installed ({', '.join(installed) or 'none is'})"
        raise ConfigError(f"training.report_to: {quoted(name)} {there}. metrics.jsonl holds every step's values.")
    if name == "tensorboard" and "TENSORBOARD_LOGGING_DIR" not in os.environ:
        raise ConfigError(
            "training.report_to: tensorboard would write among the checkpoints, which are removed in the end. Set the "
            "environment variable TENSORBOARD_LOGGING_DIR to another folder."
        )
