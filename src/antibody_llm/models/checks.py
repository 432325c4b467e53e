"""What a model's folder must hold, and what its parts must be, so that an error names the file and not our code."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ModelError
from ..mentions import setting
from ..text import counted, quoted
from .files import field, first_line, read_json

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SIZES = re.compile(r"(num|n)_\w+|\w+_(size|dim)")
COUNTS = re.compile(r"(num|n)_(\w+_)?(layers?|labels)")
"""Fields of config.json that transformers builds something for, one by one, before it looks at the weights."""
STACKED = re.compile(r"((?:^|\.)(?:layers|h|blocks)\.)\d+(?=\.)")


def check_folder(folder: Path, name: str) -> None:
    """Refuse a folder that lacks what every model has or holds what no model may, before transformers reads it.

    Raises:
        ModelError: names the file.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ModelError(f"{name}: no config.json in the folder, so it holds no model. Name a folder that has one.")
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{name}: holds both a model and an adapter (config.json and adapter_config.json). Move the adapter's "
            f"files to a folder of their own, and name it as {setting('adapter')}."
        )
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise ModelError(f"{name}: no tokenizer in the folder. Copy tokenizer.json and tokenizer_config.json into it.")
    if not any(file.name.endswith(WEIGHT_SUFFIXES) for file in folder.iterdir()):
        raise ModelError(f"{name}: no weights in the folder. Copy model.safetensors into it.")
    config = read_json(config_file)
    for key, value in config.items():
        if key.strip("_").startswith(("attn_implementation", "experts_implementation")) and "/" in str(value):
            raise brings_code(name, f"{key} of config.json")
    num_tensors = _num_tensors(folder)
    nested = config.get("text_config")
    for key, value in [*config.items(), *(nested.items() if isinstance(nested, dict) else ())]:
        if not isinstance(value, int) or not SIZES.fullmatch(key):
            continue
        if value < 0 or (COUNTS.fullmatch(key) and value > max(num_tensors or 0, 1000)):
            weights = "" if num_tensors is None else f", and the weights are {num_tensors} tensors"
            raise ModelError(f"{name}: {key} in config.json is {quoted(value)}{weights}. They are not of one model.")
    for path in (folder / "generation_config.json", folder / "tokenizer_config.json"):
        if path.is_file():
            read_json(path)  # transformers passes over a generation_config.json that it cannot read


def _num_tensors(folder: Path) -> int | None:
    """How many tensors the safetensors files hold; None where there are none of that kind."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        shards = ["model.safetensors"] if (folder / "model.safetensors").is_file() else []
    else:
        shards = list((field(read_json(index), index, "weight_map", dict) or {}).values())
        for shard in shards:
            if not isinstance(shard, str) or Path(shard).name != shard or not (folder / shard).is_file():
                raise ModelError(
                    f"{index}: {quoted(shard)} is no file in this folder. Copy the missing part, or save again."
                )
        shards = sorted(set(shards))
    if not shards:
        return None
    num = 0
    for shard in shards:
        try:
            with safe_open(folder / shard, framework="pt") as stored:
                num += len(stored.keys())
        except Exception as error:  # OSError, SafetensorError
            raise not_loaded(str(folder), "model", error) from error
    return num


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer with tokens that have no embedding, and ends of text that are no tokens."""
    embeddings: Any = model.get_input_embeddings()
    num_embeddings = embeddings.weight.shape[0]
    if len(tokenizer) > num_embeddings:
        raise ModelError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens, the model {num_embeddings} embeddings. "
            "They are not of the same model: put the right tokenizer into the folder."
        )
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for owner, file in ((model.config, "config.json"), (model.generation_config, "generation_config.json")):
            value = getattr(owner, key, None)
            ids = value if isinstance(value, list) and key == "eos_token_id" else [] if value is None else [value]
            if not all(isinstance(id, int) and not isinstance(id, bool) and -1 <= id < num_embeddings for id in ids):
                raise ModelError(
                    f"{name}: {key} in {file} is {quoted(value)}, and the model's tokens are 0 to "
                    f"{num_embeddings - 1}. Put it right."
                )


def check_finite(model: nn.Module, name: str, adapter: str | None) -> None:
    """Refuse weights that are not numbers: everything measured with them would be meaningless."""
    weights = [(key, weight.detach()) for key, weight in model.named_parameters() if weight.dtype in DTYPES.values()]
    # The smallest and the largest are NaN where any is; unlike isfinite() they need no second copy of the weights.
    extremes = [torch.stack(weight.aminmax()).float() for _, weight in weights if weight.numel()]
    keys = [key for key, weight in weights if weight.numel()]
    broken = [
        key for key, finite in zip(keys, torch.stack(extremes).isfinite().all(1).tolist(), strict=True) if not finite
    ]
    if broken:
        of = adapter if adapter is not None and ".lora_" in broken[0] else name
        those = counted(len(broken), "weight holds", "weights hold")
        raise ModelError(
            f"{of}: {those} NaN or infinite numbers (first: {broken[0]}). The training that made "
            "them diverged, or the file is damaged: take an earlier one."
        )


def not_loaded(name: str, what: str, error: BaseException) -> ModelError:
    """The error for a model or a part of it that a library failed to load."""
    if "trust_remote_code" in str(error):
        return brings_code(name, f"auto_map of its {what}")
    advice = "Check the folder." if is_folder(name) else "Check the name and the connection, or give a folder."
    return ModelError(f"{name}: the {what} cannot be loaded ({first_line(error)}). {advice}")


def brings_code(name: str, where: str) -> ModelError:
    """The error for a model that wants code of its own to be run."""
    return ModelError(
        f"{name}: needs code of its own ({where}), and a model's code is never run here. Use a model of an "
        "architecture that transformers knows, or convert it to one."
    )


def is_folder(name: str) -> bool:
    """Whether a name is a folder; False where the system cannot say."""
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):
        return False
