"""Load a causal language model, its tokenizer and, where there is one, its LoRA adapter.

A name is one of: ``lab`` and ``lab-aligned``, which come with the package; a folder; a folder that holds an adapter,
whose base is then found by itself; a Hub id. A local folder called ``lab`` is written ``./lab``.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import PeftModel
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ModelError
from ..mentions import setting
from ..text import quoted
from .files import field, first_line, read_json
from .stored_adapter import attach_adapter, read_adapter_config

PACKAGED = ("lab", "lab-aligned")
PROVENANCE = "antibody.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
SIZES = re.compile(r"(num|n)_\w+|\w+_(size|dim)")
COUNTS = re.compile(r"(num|n)_(\w+_)?(layers?|labels)")
"""Fields of config.json that transformers builds something for, one by one, before it looks at the weights."""
STACKED = re.compile(r"((?:^|\.)(?:layers|h|blocks)\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, ready to generate or to be trained.

    Attributes:
        model: With the adapter on it, a ``PeftModel``.
        tokenizer: With a padding token.
        name: The model without its adapter, as given: what an adapter saved from here names as its base.
        base: The model as it was before alignment, for scores that compare with it; None where it is not known.
        adapter: The adapter's folder or Hub id.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    base: str | None
    adapter: str | None

    @property
    def adapter_off_is_base(self) -> bool:
        """Whether switching the adapter off gives the model before alignment, so that none need be loaded for it."""
        return self.adapter is not None and self.base is not None and resolve(self.base) == resolve(self.name)


def load_model(
    name: str,
    *,
    adapter: str | None = None,
    base: str | None = None,
    dtype: str = "auto",
    trainable_adapter: bool = False,
    device: torch.device | str | None = None,
) -> LoadedModel:
    """The model called ``name``, with ``adapter`` on it.

    Args:
        name: See the module.
        adapter: Folder or Hub id of a PEFT adapter that was trained on ``name``.
        base: The model before alignment. By default the one that ``name`` says it came from; where it says nothing,
            the model under the adapter.
        dtype: Of the weights. ``auto`` is float32 on a CPU, whatever is on disk, and bfloat16 on a GPU.
        trainable_adapter: Whether the adapter's weights require gradients.
        device: By default this process's GPU, else the CPU.

    Raises:
        ModelError: something is missing, does not load, or does not fit together.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"dtype '{dtype}' is not known. Known: auto, {', '.join(DTYPES)}.")
    if is_adapter(name):
        name, adapter = adapter_base(name), adapter or name
    place = resolve(name)
    target = torch.device(device if device is not None else _default_device())
    weights_dtype = DTYPES.get(dtype) or (torch.float32 if target.type == "cpu" else torch.bfloat16)
    if Path(place).is_dir():
        _check_folder(Path(place), name)
    factors = None if adapter is None else _adapter_folder(adapter)
    if adapter is not None and factors is not None:
        _check_base(adapter, factors, name)
    base = base or read_provenance(place).get("base") or (name if adapter is not None else None)
    if base is not None:
        resolve(base)  # says so now, not after the training
    tokenizer = _load_tokenizer(place, factors, name)
    model: Any = _load_weights(place, name, weights_dtype)
    _check_vocabulary(model, tokenizer, name)
    model.config.pad_token_id = tokenizer.pad_token_id
    if adapter is not None and factors is not None:
        model = attach_adapter(model, factors, adapter=adapter, name=name, trainable=trainable_adapter)
    model = model.to(target)
    _check_finite(model, name, adapter)
    return LoadedModel(model, tokenizer, name, base, adapter)


def resolve(name: str) -> str:
    """Where ``name`` really is: an absolute folder, or a Hub id as it is.

    Raises:
        ModelError: there is no such folder, and it cannot be a Hub id.
    """
    if name in PACKAGED:
        folder = Path(str(files("antibody_llm"))) / "lab" / "files" / name
        if not folder.is_dir():
            raise ModelError(f"{name}: this installation has no lab model. Make it with: antibody lab build")
        return str(folder)
    if not name:
        raise ModelError("'': no model is named. Give a model's folder, a Hub id (OWNER/NAME), or 'lab'.")
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            return str(path.resolve())
        if path.exists():
            raise ModelError(f"{name}: a file, not a model's folder. Name the folder it is in.")
    except (OSError, ValueError, RuntimeError) as error:  # too long, not ours to read, NUL, a user who is not there
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ModelError(f"{quoted(name)}: cannot be looked up ({reason}). Give a model's folder.") from error
    if not HUB_ID.fullmatch(name):
        raise ModelError(f"{quoted(name)}: no such folder. Give a model's folder, a Hub id (OWNER/NAME), or 'lab'.")
    return name


def is_adapter(name: str) -> bool:
    """Whether ``name`` is a folder that holds an adapter rather than a whole model."""
    folder = Path(resolve(name))
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def adapter_base(adapter: str) -> str:
    """The model under ``adapter``: what its configuration names, or else, where that is gone, its provenance.

    Raises:
        ModelError: neither can be found.
    """
    folder = _adapter_folder(adapter)
    named = [read_adapter_config(folder)["base_model_name_or_path"], read_provenance(str(folder)).get("base")]
    candidates: list[str] = [name for name in named if name]
    for name in candidates:
        # An absolute path that is gone can look like nothing else; a Hub id is believed.
        if name in PACKAGED or _is_folder(name) or HUB_ID.fullmatch(name):
            return name
    raise ModelError(
        f"{adapter}: the adapter's base is not found ({', '.join(map(quoted, candidates)) or 'none is named'}). "
        f"Give the base as {setting('model')} and this folder as {setting('adapter')}."
    )


def read_provenance(folder: str) -> dict[str, Any]:
    """What ``antibody.json`` in a model's folder says of where the model came from; empty where there is none.

    Entries that are null are left out. ``base`` is a text, ``deployment`` an object of texts.

    Raises:
        ModelError: it cannot be read, or one of these is something else.
    """
    path = Path(folder) / PROVENANCE
    if not path.is_file():
        return {}
    entries = {key: value for key, value in read_json(path).items() if value is not None}
    field(entries, path, "base", str)
    deployment = field(entries, path, "deployment", dict)
    for key in deployment or {}:
        if field(deployment, path, key, str) is None:
            raise ModelError(f"{path}: {quoted(key)} of deployment is null, not a text. Remove it.")
    return entries


def _default_device() -> str:
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):
        return False


def _adapter_folder(adapter: str) -> Path:
    """The folder that holds ``adapter``, downloaded where it is a Hub id: its files are read before PEFT reads them."""
    place = resolve(adapter)
    if Path(place).is_dir():
        return Path(place)
    try:
        return Path(
            snapshot_download(place, allow_patterns=["adapter_*", PROVENANCE, "*token*", "*.jinja", *TOKENIZER_FILES])
        )
    except Exception as error:  # the Hub's client raises many kinds
        raise _not_loaded(adapter, "adapter", error) from error


def _check_folder(folder: Path, name: str) -> None:
    """A folder lacks what every model has, or holds what no model may: say which file, before transformers reads it."""
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
            raise _brings_code(name, f"{key} of config.json")
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
            raise _not_loaded(str(folder), "model", error) from error
    return num


def _load_tokenizer(place: str, adapter: Path | None, name: str) -> PreTrainedTokenizerBase:
    """The adapter's own tokenizer where it has one, since it was trained with it."""
    own = adapter is not None and any((adapter / file).is_file() for file in TOKENIZER_FILES)
    source = Path(place) if adapter is None or not own else adapter
    config_file = source / "tokenizer_config.json"
    if config_file.is_file():
        read_json(config_file)
    tokenizer: Any = _guarded(
        name, "tokenizer", lambda: AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    )
    if not isinstance(tokenizer.model_max_length, int | float) or tokenizer.model_max_length <= 0:
        raise ModelError(
            f"{name}: model_max_length of the tokenizer is {quoted(tokenizer.model_max_length)}, not a length."
        )
    if not isinstance(tokenizer.chat_template, str | dict | None):
        raise ModelError(f"{name}: the tokenizer's chat_template is {quoted(tokenizer.chat_template)}, not a text.")
    # Some of what is wrong in tokenizer.json shows only where a text is encoded.
    _guarded(name, "tokenizer", lambda: tokenizer.decode(tokenizer("A probe.").input_ids))
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"{name}: the tokenizer has neither a padding nor an end-of-sequence token. Set one.")
        # Labels come from spans, never from comparing ids, so that a trained end of sequence stays trained.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load_weights(place: str, name: str, dtype: torch.dtype) -> PreTrainedModel:
    loaded: Any = _guarded(
        name,
        "model",
        lambda: AutoModelForCausalLM.from_pretrained(
            place,
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=False,  # unset, it would ask standard input
            weights_only=True,  # what a pickle may hold where a model has no safetensors
        ),
    )
    model, info = loaded
    for kind in ("missing_keys", "mismatched_keys"):
        if info[kind]:
            raise ModelError(
                f"{name}: {len(info[kind])} weights are {kind.split('_')[0]} (first: {sorted(info[kind])[0]}) and "
                "would be random. The folder's weights and config.json are not of the same model."
            )
    names = {key for key, _ in model.named_parameters()}
    left = [key for key in info["unexpected_keys"] if STACKED.search(key) and STACKED.sub(r"\g<1>0", key) in names]
    if left:
        raise ModelError(
            f"{name}: {len(left)} weights belong to layers that config.json does not count (first: {sorted(left)[0]}). "
            "The folder's weights and config.json are not of the same model."
        )
    if getattr(model, "_hf_peft_config_loaded", False):  # a Hub id; a folder was looked into
        raise ModelError(
            f"{name}: an adapter, which was put on its base. Give the base as {setting('model')} and it as "
            f"{setting('adapter')}."
        )
    return model


def _guarded(name: str, what: str, load: Callable[[], Any]) -> Any:
    """What ``load`` returns, its errors as ours: transformers, tokenizers and the Hub's client each have their own."""
    try:
        return load()
    except Exception as error:
        raise _not_loaded(name, what, error) from error
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # of tokenizers and safetensors; an Exception it is not
            raise _not_loaded(name, what, error) from error
        raise


def _not_loaded(name: str, what: str, error: BaseException) -> ModelError:
    if "trust_remote_code" in str(error):
        return _brings_code(name, f"auto_map of its {what}")
    advice = "Check the folder." if _is_folder(name) else "Check the name and the connection, or give a folder."
    return ModelError(f"{name}: the {what} cannot be loaded ({first_line(error)}). {advice}")


def _brings_code(name: str, where: str) -> ModelError:
    return ModelError(
        f"{name}: needs code of its own ({where}), and a model's code is never run here. Use a model of an "
        "architecture that transformers knows, or convert it to one."
    )


def _check_base(adapter: str, folder: Path, name: str) -> None:
    """Refuse an adapter trained on another model: it would load wherever the shapes agree."""
    named = read_adapter_config(folder)["base_model_name_or_path"]
    # A base that is gone, or a folder beside a Hub id, may well be the same model in another place.
    if not named or _is_folder(named) != Path(resolve(name)).is_dir():
        return
    if resolve(named) != resolve(name):
        shown = quoted(named).strip("'")
        raise ModelError(
            f"{adapter}: the adapter was trained on {shown}, not on {name}. Give {setting('model', shown)}."
        )


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Every token has an embedding, and what ends a text is a token."""
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


def _check_finite(model: nn.Module, name: str, adapter: str | None) -> None:
    """Refuse weights that are not numbers: everything measured of them would be one, and mean nothing."""
    weights = [(key, weight.detach()) for key, weight in model.named_parameters() if weight.dtype in DTYPES.values()]
    # The smallest and the largest are NaN where any is; unlike isfinite() they need no second copy of the weights.
    extremes = [torch.stack(weight.aminmax()).float() for _, weight in weights if weight.numel()]
    keys = [key for key, weight in weights if weight.numel()]
    broken = [
        key for key, finite in zip(keys, torch.stack(extremes).isfinite().all(1).tolist(), strict=True) if not finite
    ]
    if broken:
        of = adapter if adapter is not None and ".lora_" in broken[0] else name
        raise ModelError(
            f"{of}: {len(broken)} weights hold NaN or infinite numbers (first: {broken[0]}). The training that made "
            "them diverged, or the file is damaged: take an earlier one."
        )
