"""LoRA adapters: put one on a model, switch it off for a while."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from ..errors import ConfigError, ModelError
from ..mentions import setting

PAPER_TARGETS = ("q_proj", "k_proj", "v_proj")
"""Source: the release of Antibody (2603.00498), scripts: LoRA r 32, alpha 4, targets q, k, v, dropout 0."""


def add_lora(
    model: PreTrainedModel | PeftModel,
    *,
    r: int = 32,
    alpha: int = 4,
    targets: str | Sequence[str] = PAPER_TARGETS,
    dropout: float = 0.0,
    seed: int,
) -> PeftModel:
    """``model`` with a new, trainable adapter on it; its own weights are frozen. The output is unchanged at first.

    Args:
        model: Changed in place.
        r: Rank of the adapter.
        alpha: The adapter's output is multiplied by alpha / r.
        targets: Names of linear layers, or "all-linear" for every one but the head.
        dropout: Share of the adapter's inputs that is dropped in training.
        seed: Seed of the adapter's first weights; the global generator is left as it was.

    Raises:
        ConfigError: a number out of range, or no target.
        ModelError: the model has an adapter already, or no layer of that name.
    """
    if r < 1 or alpha <= 0 or not 0 <= dropout < 1:
        raise ConfigError(
            f"lora: r {r}, alpha {alpha}, dropout {dropout}: needs r >= 1, alpha > 0, 0 <= dropout < 1.", field="lora"
        )
    if isinstance(model, PeftModel):
        raise ModelError("the model has an adapter already. Continue training that one, or merge it first.")
    # The head is left out: losses read its weight past an adapter, and tied embeddings would change with it.
    head = model.get_output_embeddings()
    sizes = {
        name.rpartition(".")[2]: max(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    if targets != "all-linear":
        targets = [targets] if isinstance(targets, str) else list(targets)
        layers = set(sizes)
        if absent := [target for target in targets if target not in layers]:
            raise ModelError(
                f"{type(model).__name__} has no linear layer {', '.join(absent)}. Set lora targets to "
                f"some of {', '.join(sorted(layers)) or '(it has none)'}, or to all-linear."
            )
        if not targets:
            raise ConfigError(
                f"lora targets: none. Name some of {', '.join(sorted(layers))}, or all-linear.", field="lora.targets"
            )
    largest = max((sizes[name] for name in (sizes if targets == "all-linear" else targets)), default=r)
    if r > largest:
        raise ConfigError(
            f"lora: r {r} is above {largest}, the largest side of the layers it is for. Set a lower r.", field="lora.r"
        )
    config = LoraConfig(
        r=r, lora_alpha=alpha, target_modules=targets, lora_dropout=dropout, bias="none", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


@contextmanager
def adapter_disabled(model: nn.Module) -> Iterator[None]:
    """Inside, ``model`` is the one under the adapter.

    Every requires_grad flag is restored on the way out: PEFT's own ``disable_adapter`` un-freezes what was frozen.

    Raises:
        ModelError: the model has no adapter.
    """
    if not isinstance(model, PeftModel):
        raise ModelError(
            "the model has no adapter to switch off. Load one, or name the model before alignment as "
            f"{setting('base')}."
        )
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def merged(model: PeftModel) -> PreTrainedModel:
    """The model with the adapter's product in its weights, which can be trained; ``model`` is of no use after."""
    whole: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    return whole.requires_grad_(True)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that require gradients by name, in the model's order; weights that are tied occur once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
