"""Put a stored LoRA adapter on a model, whoever wrote its folder.

PEFT takes an adapter's configuration at its word: patterns are matched without a limit, whole weights replace the
model's, and tensors that are missing stay random. Here the configuration is read field by field, patterns become names
within a time limit, and names and shapes of all tensors are compared before one is loaded.
"""

import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import regex
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import load_peft_weights
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import ModelError
from ..mentions import setting
from ..text import quoted
from .files import field, first_line, read_json, texts

CONFIG = "adapter_config.json"
ALL_LINEAR = "all-linear"
PATTERN_SECONDS = 2.0
"""Seconds for all patterns of one configuration together. Five hundred plain ones on five hundred layers take 0.3 s."""
_PATTERN_LENGTH = 1000
_PLAIN_NAME = regex.compile(r"[\w.]*")

_READ = {
    "base_model_name_or_path": (str,),
    "peft_type": (str,),
    "task_type": (str,),
    "r": (int,),
    "lora_alpha": (float,),
    "lora_dropout": (float,),
    "bias": (str,),
    "fan_in_fan_out": (bool,),
    "use_rslora": (bool,),
    "use_dora": (bool,),
    "rank_pattern": (dict,),
    "alpha_pattern": (dict,),
    "layers_to_transform": (int, list),
    "init_lora_weights": (bool, str),
}
_READ_AS_TEXTS = ("target_modules", "exclude_modules", "layers_pattern")
_WITHOUT_EFFECT = frozenset(
    (
        "auto_mapping",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "inference_mode",
        "loftq_config",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
    )
)
"""Fields of PEFT's own that say how the adapter was first made, or that count only beside one that is refused."""
_PLAIN_START = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Ways to draw an adapter's first weights that leave the model under it as it is. The others (PiSSA, OLoRA, CorDA,
LoftQ) change it each time the adapter is loaded."""


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """What ``adapter_config.json`` in ``folder`` says, checked field by field.

    Raises:
        ModelError: there is none, a field is malformed, or it asks for something besides low-rank factors.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ModelError(f"{folder}: no {CONFIG} in the folder, so it holds no adapter. Name one that does.")
    entries = read_json(path)
    config = {key: field(entries, path, key, *kinds) for key, kinds in _READ.items()}
    config |= {key: texts(entries, path, key) for key in _READ_AS_TEXTS}
    if config["peft_type"] not in ("LORA", None) or config["task_type"] not in ("CAUSAL_LM", None):
        kind = quoted(f"{config['peft_type']} for {config['task_type']}")
        raise ModelError(f"{path}: the adapter is {kind}; only LoRA for CAUSAL_LM is known. Train one, or merge it.")
    if saved := entries.get("modules_to_save"):
        raise _merge_first(folder, f"whole layers beside the factors (modules_to_save: {quoted(saved)})")
    if entries.get("trainable_token_indices"):
        raise _merge_first(folder, "embeddings of single tokens (trainable_token_indices)")
    if config["bias"] not in ("none", None):
        raise _merge_first(folder, f"biases of the model (bias: {quoted(config['bias'])})")
    start = config["init_lora_weights"]
    if isinstance(start, str) and start.lower() not in _PLAIN_START:
        raise _merge_first(folder, f"a change of the model's own weights (init_lora_weights: {quoted(start)})")
    for key, value in entries.items():
        if value and key not in config and key not in _WITHOUT_EFFECT:
            raise _merge_first(folder, f"something besides low-rank factors ({quoted(key)}: {quoted(value)})")
    _check_numbers(config, path)
    return config


def attach_adapter(
    model: PreTrainedModel | PeftModel,
    folder: Path,
    *,
    adapter: str,
    name: str,
    trainable: bool,
    key: str = "default",
) -> PeftModel:
    """``model`` with the adapter of ``folder`` on it.

    Args:
        model: Changed in place. One that has adapters already gets a further one, beside them.
        folder: See the module.
        adapter: What the user calls the adapter.
        name: What the user calls the model.
        trainable: Whether the adapter's weights require gradients.
        key: What PEFT is to call it.

    Raises:
        ModelError: the configuration is unusable, or names and shapes of the tensors are not those it asks for.
    """
    entries = read_adapter_config(folder)
    bare = model.get_base_model() if isinstance(model, PeftModel) else model
    names = _Patterns(_own_names(bare), folder / CONFIG)
    try:
        stored: dict[str, Any] = load_peft_weights(
            str(folder), device="cpu", key_mapping=getattr(bare, "_checkpoint_conversion_mapping", {})
        )
        _check_ranks(stored, entries, adapter, name)
        if trainable and (entries["use_dora"] or entries["rank_pattern"] or entries["alpha_pattern"]):
            raise ModelError(
                f"{adapter}: an adapter with DoRA, or with ranks by layer, is not trained further: vLLM refuses the "
                "one and has misread the other. Merge it into its model (merge_and_unload) and train a new one on that."
            )
        config = _lora_config(entries, bare, names)
        config.inference_mode = not trainable
        # What is not on the meta device would be random where the file has nothing for it.
        if isinstance(model, PeftModel):
            adapted = model
            adapted.add_adapter(key, config, low_cpu_mem_usage=True)
        else:
            adapted = get_peft_model(model, config, adapter_name=key, low_cpu_mem_usage=True)
    except ModelError:
        raise
    except Exception as error:  # safetensors, torch and PEFT each raise their own kinds
        raise ModelError(f"{adapter}: the adapter cannot be loaded ({first_line(error)}). Check the folder.") from error
    _check_head(adapted, adapter, trainable=trainable)
    wanted = get_peft_model_state_dict(adapted, adapter_name=key, save_embedding_layers=False)
    stored = _without_copies(stored, adapted)
    _check_tensors(stored, wanted, adapter, name)
    # A tensor that takes the place of one on the meta device keeps its own type.
    loaded = {key: tensor.to(wanted[key].dtype) for key, tensor in stored.items()}
    set_peft_model_state_dict(adapted, loaded, adapter_name=key, low_cpu_mem_usage=True)
    return adapted if trainable else adapted.eval()  # its dropout is as new


def _own_names(model: nn.Module) -> list[str]:
    """The modules of a model without those that adapters have put into it."""
    names = (name for name, _ in model.named_modules() if "lora_" not in name and not name.endswith(".base_layer"))
    return list(names)


def _check_numbers(config: dict[str, Any], path: Path) -> None:
    """Supply PEFT's defaults, and refuse what is out of range."""
    for key, default in (("r", 8), ("lora_alpha", 8.0), ("lora_dropout", 0.0)):
        config[key] = default if config[key] is None else config[key]
    for key in ("rank_pattern", "alpha_pattern"):
        config[key] = {one: field(config[key], path, one, float) for one in config[key] or {}}
    ranks = [config["r"], *config["rank_pattern"].values()]
    alphas = [config["lora_alpha"], *config["alpha_pattern"].values()]
    if not all(rank is not None and rank >= 1 and rank == int(rank) for rank in ranks):
        raise ModelError(f"{path}: r and rank_pattern need whole numbers from 1 on. Save the adapter again.")
    if not all(alpha is not None and 0 < alpha < float("inf") for alpha in alphas):
        raise ModelError(f"{path}: lora_alpha and alpha_pattern need numbers above 0. Save the adapter again.")
    if not 0 <= config["lora_dropout"] < 1:
        raise ModelError(f"{path}: lora_dropout is {config['lora_dropout']}, not from 0 to below 1. Put it right.")
    config["rank_pattern"] = {key: int(rank) for key, rank in config["rank_pattern"].items()}
    layers = config["layers_to_transform"]
    if isinstance(layers, list) and not all(isinstance(layer, int) for layer in layers):
        raise ModelError(f"{path}: layers_to_transform is {quoted(layers)}, not a list of whole numbers. Put it right.")
    patterns = config["layers_pattern"] or []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if not _PLAIN_NAME.fullmatch(pattern):
            raise ModelError(f"{path}: layers_pattern is {quoted(pattern)}, not a layer's name. Put it right.")
    if not config["target_modules"]:
        raise ModelError(f"{path}: target_modules names no layer. Save the adapter again.")


def _lora_config(config: dict[str, Any], model: nn.Module, patterns: "_Patterns") -> LoraConfig:
    """PEFT's configuration with names of ``model`` in the place of patterns."""
    targets: Any = config["target_modules"]
    layers = config["layers_to_transform"]
    if isinstance(targets, str) and layers is not None:
        raise ModelError(f"{patterns.path}: layers_to_transform goes with a list of target_modules only. Put it right.")
    if targets != ALL_LINEAR:
        targets = patterns.matching(targets)
        if not targets:
            shown = quoted(config["target_modules"])
            raise ModelError(
                f"{patterns.path}: {type(model).__name__} has no layer {shown} for the adapter. It was trained on "
                f"another model: give that as {setting('model')}."
            )
    return LoraConfig(
        r=config["r"],
        lora_alpha=_whole(config["lora_alpha"]),
        lora_dropout=config["lora_dropout"],
        target_modules=targets,
        exclude_modules=patterns.matching(config["exclude_modules"] or []) or None,
        fan_in_fan_out=bool(config["fan_in_fan_out"]),
        use_rslora=bool(config["use_rslora"]),
        use_dora=bool(config["use_dora"]),
        rank_pattern=patterns.by_name(config["rank_pattern"]),
        alpha_pattern=patterns.by_name(config["alpha_pattern"]),
        layers_to_transform=sorted(set(layers) & set(range(len(patterns.names))))
        if isinstance(layers, list)
        else layers,
        layers_pattern=config["layers_pattern"] if layers is not None else None,
        bias="none",
        task_type="CAUSAL_LM",
    )


class _Patterns:
    """Which of ``names`` a pattern means, as PEFT matches it, within PATTERN_SECONDS for all patterns together."""

    def __init__(self, names: Collection[str], path: Path) -> None:
        self.names = names
        self.path = path
        self.deadline = time.monotonic() + PATTERN_SECONDS

    def matching(self, pattern: str | Iterable[str]) -> list[str]:
        """The entries of a list that end some name, or the names that a text matches as a whole."""
        if isinstance(pattern, str):
            compiled = self._compiled(pattern)
            return [name for name in self.names if name and self._fullmatch(compiled, name)]
        ends = {name[at:] for name in self.names for at in (0, *(i + 1 for i, c in enumerate(name) if c == "."))}
        return sorted(ends & set(pattern) - {""})

    def by_name(self, values: dict[str, Any]) -> dict[str, Any]:
        """The value of each name that an entry's pattern ends; of several the first."""
        compiled = [(self._compiled(rf"(.*\.)?({pattern})"), _whole(value)) for pattern, value in values.items()]
        found = {}
        for name in self.names if compiled else ():
            for pattern, value in compiled:
                if self._fullmatch(pattern, name):
                    found[name] = value
                    break
        return found

    def _compiled(self, pattern: str) -> Any:
        if len(pattern) <= _PATTERN_LENGTH:
            try:
                return regex.compile(pattern)
            except (regex.error, ValueError, RecursionError, OverflowError, MemoryError):
                pass
        raise ModelError(f"{self.path}: {quoted(pattern)} is no pattern. Name the layers in a list.")

    def _fullmatch(self, compiled: Any, name: str) -> bool:
        try:
            return compiled.fullmatch(name, timeout=max(self.deadline - time.monotonic(), 1e-3)) is not None
        except TimeoutError:
            raise ModelError(
                f"{self.path}: matching {quoted(compiled.pattern)} took over {PATTERN_SECONDS:.0f} s. "
                "Name the layers in a list."
            ) from None


def _whole(value: float) -> Any:
    """PEFT and vLLM declare alpha a whole number: 4.0 is saved as 4."""
    return int(value) if value == int(value) else value


def _check_head(adapted: PeftModel, adapter: str, *, trainable: bool) -> None:
    """Refuse factors on the embeddings where they would not mean the same everywhere."""
    bare: Any = adapted.get_base_model()
    ends: list[Any] = [bare.get_input_embeddings(), bare.get_output_embeddings()]
    if not any(isinstance(layer, BaseTunerLayer) for layer in ends):
        return
    weights = [layer.get_base_layer().weight if isinstance(layer, BaseTunerLayer) else layer.weight for layer in ends]
    if weights[0] is weights[1]:
        raise ModelError(
            f"{adapter}: the adapter is on one end of embeddings that the model's two ends share (tied): merged it "
            "would change both. Train one without embed_tokens and lm_head."
        )
    if trainable:
        raise ModelError(
            f"{adapter}: the adapter is on the embeddings or the head, which are read past adapters in training. "
            "Train one without embed_tokens and lm_head, or merge it into its model first."
        )


def _check_ranks(stored: dict[str, Any], config: dict[str, Any], adapter: str, name: str) -> None:
    """Refuse a rank that no stored tensor has before PEFT makes room for it."""
    largest = max((max(tensor.shape, default=0) for tensor in stored.values() if isinstance(tensor, Tensor)), default=0)
    rank = max(config["r"], *config["rank_pattern"].values(), 0)
    if rank > largest:
        raise ModelError(
            f"{adapter}: the adapter's shapes do not fit {name} (rank {rank}; the largest side of a stored tensor is "
            f"{largest}): it was trained on another model. Give that as "
            f"{setting('model')}."
        )


def _without_copies(stored: dict[str, Any], adapted: PeftModel) -> dict[str, Any]:
    """The tensors without the copy of the embeddings that PEFT stores beside factors on them, if it is the same."""
    own = dict(adapted.named_parameters())
    return {
        key: tensor
        for key, tensor in stored.items()
        if not (
            key.endswith(".base_layer.weight")
            and isinstance(tensor, Tensor)
            and key in own
            and tensor.shape == own[key].shape
            and torch.equal(tensor.to(own[key].dtype), own[key])
        )
    }


def _check_tensors(stored: dict[str, Any], wanted: dict[str, Tensor], adapter: str, name: str) -> None:
    whole = sorted(key for key in stored if ".lora_" not in key)
    if whole:
        raise _merge_first(adapter, f"whole weights (first: {quoted(whole[0])}), as where tokens were added")
    if odd := sorted(set(stored) ^ set(wanted)):
        raise ModelError(
            f"{adapter}: {len(odd)} of the adapter's weights have no place in {name}, or are not stored "
            f"(first: {quoted(odd[0])}). It was trained on another model: give that as "
            f"{setting('model')}."
        )
    for key, tensor in stored.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise ModelError(f"{adapter}: {quoted(key)} holds no floating-point numbers. Save the adapter again.")
        if tensor.shape != wanted[key].shape:
            raise ModelError(
                f"{adapter}: the adapter's shapes do not fit {name} ({quoted(key)} is {list(tensor.shape)}, not "
                f"{list(wanted[key].shape)}): it was trained on another model. Give that as "
                f"{setting('model')}."
            )


def _merge_first(place: object, what: str) -> ModelError:
    return ModelError(
        f"{place}: the adapter holds {what}. Adapters here are low-rank factors only, which every server loads. "
        "Merge it into its model (PEFT's merge_and_unload, then save_pretrained) and give the result as "
        f"{setting('model')}."
    )
