"""Settings of TRL's trainers that a defence cannot be used with, each with the reason."""

from collections.abc import Mapping

from trl import DPOConfig, SFTConfig

from ..errors import ConfigError


def refuse_unsupported_in_sft(args: SFTConfig) -> None:
    """Refuse what only SFT has and would be silently wrong here.

    Raises:
        ConfigError: such a setting is on.
    """
    merges = "it merges rows, and a row's weight could no longer be recorded"
    _refuse(
        {
            "packing": (args.packing, merges),
            "loss_type": (args.loss_type != "nll", "a defence defines its own loss"),
        }
    )


def refuse_unsupported(args: SFTConfig | DPOConfig) -> None:
    """Refuse settings that would be silently wrong here.

    Raises:
        ConfigError: such a setting is on.
    """
    checkpointing = args.gradient_checkpointing_kwargs
    _refuse(
        {
            "padding_free": (args.padding_free, "it merges rows, and a row's weight could no longer be recorded"),
            "fp16": (args.fp16, "its gradient scaler cannot see the gradients that a defence sets; use bf16"),
            "use_liger_kernel": (args.use_liger_kernel, "its loss has no number for each row"),
            "neftune_noise_alpha": (
                args.neftune_noise_alpha is not None,
                "a defence compares passes that must compute the same function",
            ),
            "gradient_checkpointing_kwargs.use_reentrant": (
                isinstance(checkpointing, dict) and bool(checkpointing.get("use_reentrant")),
                "reentrant checkpointing does not work with gradients taken by autograd.grad",
            ),
            "save_only_model": (
                args.save_only_model,
                "its checkpoints lack the optimiser, so a resumed run would give another result",
            ),
            "auto_find_batch_size": (args.auto_find_batch_size, "the batch size is part of a defence's definition"),
        }
    )
    if args.n_gpu > 1:
        raise ConfigError(
            f"{args.n_gpu} GPUs in one process: nn.DataParallel is not supported. Start one process per GPU "
            "(accelerate launch), or choose one with CUDA_VISIBLE_DEVICES."
        )


def _refuse(refusals: Mapping[str, tuple[bool, str]]) -> None:
    for name, (set_, why) in refusals.items():
        if set_:
            raise ConfigError(f"training.{name} cannot be used with a defence: {why}.")
