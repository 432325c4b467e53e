"""Which ways of sharing a run out among processes a defence can be trained in."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers import Trainer

from ..errors import ConfigError, TrainingError
from ..events import warn
from ..likelihood.completion import bare
from ..likelihood.ranks import num_ranks

_NUM_RANKS = "num_ranks"


def check_distribution(trainer: Trainer, model: nn.Module, *, on_pairs: bool) -> None:
    """Refuse what would be wrong, and have gradients of FSDP summed in float32.

    Args:
        trainer: A trainer with its accelerator, and before it has prepared its model.
        model: The model that it trains.
        on_pairs: Whether it trains on pairs.

    Raises:
        ConfigError: DeepSpeed, or FSDP in a form that a step is not exact in.
    """
    if trainer.is_deepspeed_enabled:
        raise ConfigError(
            "DeepSpeed owns the backward pass and the gradients, which a defence sets itself. Use DDP, or FSDP with "
            "fsdp_version 2 (docs/scale.md has its configuration)."
        )
    if not trainer.is_fsdp_enabled:
        return
    plugin: Any = trainer.accelerator.state.fsdp_plugin
    obstacles = {
        "fsdp_version 1 keeps the weights of a unit in one flat tensor. Set fsdp_version: 2": plugin.fsdp_version != 2,
        "a base in 4 bits is not sharded, and nobody has run one under it. Use DDP: it takes a quarter of the memory": (
            bool(getattr(bare(model), "is_quantized", False))
        ),
        "training on pairs has not been compared with one process under it. Use DDP": on_pairs,
        "tensor, context and hybrid parallelism have not been compared with one process. Take out parallelism_config": (
            trainer.accelerator.parallelism_config is not None
        ),
        "fsdp_offload_params moves the weights to the CPU between passes, and nobody has run a defence so. Set it to "
        "false": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "fsdp_activation_checkpointing wraps the layers that defences look into. Set it to false, and "
        "training.gradient_checkpointing to true": bool(plugin.activation_checkpointing),
        "a checkpoint of whole weights would need room for them on one rank. Set fsdp_state_dict_type: "
        "SHARDED_STATE_DICT": "SHARDED" not in str(plugin.state_dict_type),
    }
    for obstacle, holds in obstacles.items():
        if holds:
            raise ConfigError(f"FSDP: {obstacle}.")
    if plugin.mixed_precision_policy is not None:  # accelerate would sum gradients in the type of the passes
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, reduce_dtype=torch.float32)
    warn(
        "FSDP: on GPUs this is untested. Gradients, perturbations and checkpoints are compared with one process on "
        "CPUs, and the run compares its own at the start. Please report how it went."
    )


def ranks_state() -> dict[str, Tensor]:
    """The number of ranks, as a checkpoint stores it."""
    return {_NUM_RANKS: torch.tensor(num_ranks())}


def require_same_ranks(state: Mapping[str, Tensor], name: str) -> None:
    """Refuse to go on with another number of ranks; checkpoints of earlier releases do not say theirs.

    Args:
        state: What the checkpoint holds.
        name: The checkpoint's name.

    Raises:
        TrainingError: it is another number.
    """
    before = int(state.get(_NUM_RANKS, torch.tensor(num_ranks())))
    if before != num_ranks():
        raise TrainingError(
            f"{name} was written by {before} processes, and this run has {num_ranks()}: its steps would have other "
            f"rows, and its sums another order. Start it with {before} (num_processes of accelerate launch), "
            "or start a new run."
        )
