"""A run's SFTConfig: TRL's defaults, ours where they differ, then what the user set."""

import logging
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..defences.catalogue import nearest
from ..errors import ConfigError
from ..training.trainer import SFTConfig

log = logging.getLogger(__name__)

RESERVED = {"output_dir": "--output", "seed": "--seed", "resume_from_checkpoint": "--resume"}
"""Fields that have a flag of their own."""

NOT_STORED = ("output_dir", "hub_token", "local_rank", "resume_from_checkpoint", "seed", "eos_token", "pad_token")
"""Fields that say nothing about the result, or stand elsewhere in config.yaml."""

FLAGS = {
    "learning_rate": "--learning-rate",
    "num_train_epochs": "--epochs",
    "per_device_train_batch_size": "--batch-size",
}


def default_training(*, exact: bool = False) -> dict[str, Any]:
    """Where we depart from TRL's defaults; with ``exact``, without bf16 on a GPU either."""
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


def merged_training(
    training: Mapping[str, Any] | None, *, epochs: float | None, batch_size: int | None, learning_rate: float | None
) -> dict[str, Any]:
    """Fields of SFTConfig, those with a flag of their own included.

    Raises:
        ConfigError: one is given both ways.
    """
    merged = dict(training or {})
    own = {"num_train_epochs": epochs, "per_device_train_batch_size": batch_size, "learning_rate": learning_rate}
    for name, value in own.items():
        if value is not None:
            if name in merged:
                raise ConfigError(f"training.{name} and {FLAGS[name]} are both given. Give one of them.")
            merged[name] = value
    return merged


def make_training_config(
    checkpoints: Path, training: Mapping[str, Any], *, seed: int, exact: bool = False
) -> SFTConfig:
    """The configuration of the trainer.

    Args:
        checkpoints: Where checkpoints go.
        training: Fields of SFTConfig, as parsed from YAML or as text from the command line.
        seed: Of everything random.
        exact: Whether the defence needs float32 (``Defence.twin_passes``); bf16 is then the user's own choice.

    Raises:
        ConfigError: an unknown field (the nearest name is offered) or a value that cannot be meant; names the flag.
    """
    if not 0 <= seed < 2**32:
        raise ConfigError(f"--seed is {seed}: a whole number from 0 to 4294967295 is needed.")
    values = default_training(exact=exact) | parse_training(training)
    _check(values)
    if exact and values["bf16"]:
        log.warning(
            "training.bf16: this defence compares passes that differ by a small perturbation, of which bf16 rounds "
            "away a part (at Booster's alpha on a LoRA factor a quarter of its direction). Leave it off."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gradient_checkpointing has a newer name, which older releases lack
            return SFTConfig(output_dir=str(checkpoints), seed=seed, **values)
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"training: {error}") from error


def parse_training(training: Mapping[str, Any]) -> dict[str, Any]:
    """Each field with the type that SFTConfig gives it."""
    types = get_type_hints(SFTConfig)
    names = [field.name for field in fields(SFTConfig) if field.init]
    parsed = {}
    for name, value in training.items():
        if name in RESERVED:
            raise ConfigError(f"training.{name}: set with {RESERVED[name]}.")
        if name not in names:
            raise ConfigError(f"training.{name}: SFTConfig has no such field{nearest(name, names)}")
        try:
            adapter = TypeAdapter(types[name], config=ConfigDict(arbitrary_types_allowed=True))
            parsed[name] = adapter.validate_python(value)
        except ValidationError as error:
            told = error.errors()[0]["msg"].lower()
            raise ConfigError(f"{_called(name)} is {value!r}: {told}.") from error
    return parsed


def stored_training(config: SFTConfig) -> dict[str, Any]:
    """Every field, as plain values, for config.yaml."""
    return {name: value for name, value in config.to_dict().items() if name not in NOT_STORED}


def _called(name: str) -> str:
    return FLAGS.get(name, f"training.{name}")


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "learning_rate": (lambda v: 0 < v <= 1, "above 0 and at most 1"),
    "num_train_epochs": (lambda v: 0 < v <= 10_000, "above 0 and at most 10000"),
    "per_device_train_batch_size": (lambda v: v >= 1, "1 or more rows"),
    "gradient_accumulation_steps": (lambda v: v >= 1, "1 or more"),
    "max_steps": (lambda v: v == -1 or v >= 1, "1 or more, or -1 for whole epochs"),
    "max_length": (lambda v: v is None or v >= 2, "2 tokens or more"),
    "max_grad_norm": (lambda v: 0 <= v < math.inf, "0 (no clipping) or more"),
    "weight_decay": (lambda v: 0 <= v <= 1, "from 0 to 1"),
    "warmup_steps": (lambda v: 0 <= v < math.inf, "0 or more; below 1 it is a share of all steps"),
    "save_steps": (lambda v: v > 0, "above 0; below 1 it is a share of all steps"),
    "logging_steps": (lambda v: v > 0, "above 0"),
    "save_total_limit": (lambda v: v is None or v >= 1, "1 or more checkpoints"),
}


def _check(values: Mapping[str, Any]) -> None:
    for name, (holds, needed) in _RULES.items():
        if name in values and not holds(values[name]):
            raise ConfigError(f"{_called(name)} is {values[name]}: it must be {needed}.")
