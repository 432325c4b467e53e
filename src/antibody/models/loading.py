"""Load a causal language model, its tokenizer and, where there is one, its LoRA adapter.

A name is one of: ``lab`` and ``lab-aligned``, which come with the package; a folder; a folder that holds an adapter,
whose base is then found by itself; a Hub id. A local folder called ``lab`` is written ``./lab``.
"""

import json
import os
import re
import warnings
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ModelError

PACKAGED = ("lab", "lab-aligned")
PROVENANCE = "antibody.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


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
    if adapter is not None:
        _check_base(adapter, name)
    tokenizer = _load_tokenizer(place, adapter, name)
    model: Any = _load_weights(place, name, weights_dtype)
    num_embeddings = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > num_embeddings:
        raise ModelError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens, the model {num_embeddings} embeddings. "
            "They are not of the same model: put the right tokenizer into the folder."
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    if adapter is not None:
        model = _load_adapter(model, adapter, name, trainable=trainable_adapter)
    base = base or read_provenance(place).get("base") or (name if adapter is not None else None)
    if base is not None:
        resolve(base)  # says so now, not after the training
    return LoadedModel(model.to(target), tokenizer, name, base, adapter)


def resolve(name: str) -> str:
    """Where ``name`` really is: an absolute folder, or a Hub id as it is.

    Raises:
        ModelError: there is no such folder, and it cannot be a Hub id.
    """
    if name in PACKAGED:
        folder = Path(str(files("antibody"))) / "lab" / "files" / name
        if not folder.is_dir():
            raise ModelError(f"{name}: this installation has no lab model. Make it with: antibody lab build")
        return str(folder)
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path.resolve())
    if path.exists():
        raise ModelError(f"{name}: a file, not a model's folder. Name the folder it is in.")
    if not HUB_ID.fullmatch(name):
        raise ModelError(f"{name}: no such folder. Give a model's folder, a Hub id (OWNER/NAME), or 'lab'.")
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
    folder = Path(resolve(adapter))
    named = [_adapter_config(folder).get("base_model_name_or_path"), read_provenance(str(folder)).get("base")]
    candidates = [str(name) for name in named if name]
    for name in candidates:
        # An absolute path that is gone can look like nothing else; a Hub id is believed.
        if name in PACKAGED or Path(name).is_dir() or HUB_ID.fullmatch(name):
            return name
    raise ModelError(
        f"{adapter}: the adapter's base is not found ({', '.join(candidates) or 'none is named'}). "
        "Give the base as --model and this folder as --adapter."
    )


def read_provenance(folder: str) -> dict[str, Any]:
    """What ``antibody.json`` in a model's folder says of where the model came from; empty where there is none."""
    path = Path(folder) / PROVENANCE
    return _read_json(path) if path.is_file() else {}


def _default_device() -> str:
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error}). Save the model again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds no JSON object. Save the model again.")
    return value


def _check_folder(folder: Path, name: str) -> None:
    """A folder lacks what every model has: say which file, where transformers would speak of the Hub."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{name}: no config.json in the folder, so it holds no model. Name a folder that has one.")
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise ModelError(f"{name}: no tokenizer in the folder. Copy tokenizer.json and tokenizer_config.json into it.")
    if not any(file.name.endswith(WEIGHT_SUFFIXES) for file in folder.iterdir()):
        raise ModelError(f"{name}: no weights in the folder. Copy model.safetensors into it.")


def _load_tokenizer(place: str, adapter: str | None, name: str) -> PreTrainedTokenizerBase:
    """The adapter's own tokenizer where it has one, since it was trained with it."""
    folder = Path(resolve(adapter)) if adapter is not None else Path(place)
    source = str(folder) if any((folder / file).is_file() for file in TOKENIZER_FILES) else place
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # transformers, tokenizers and the Hub's client each raise their own kinds
        raise _not_loaded(name, "tokenizer", error) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"{name}: the tokenizer has neither a padding nor an end-of-sequence token. Set one.")
        # Labels come from spans, never from comparing ids, so that a trained end of sequence stays trained.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load_weights(place: str, name: str, dtype: torch.dtype) -> PreTrainedModel:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, output_loading_info=True)
    except Exception as error:  # as above
        raise _not_loaded(name, "model", error) from error
    model, info = loaded
    for kind in ("missing_keys", "mismatched_keys"):
        if info[kind]:
            raise ModelError(
                f"{name}: {len(info[kind])} weights are {kind.split('_')[0]} (first: {sorted(info[kind])[0]}) and "
                "would be random. The folder's weights and config.json are not of the same model."
            )
    return model


def _not_loaded(name: str, what: str, error: Exception) -> ModelError:
    lines = str(error).strip().split("\n")
    mend = "Check the folder." if Path(name).is_dir() else "Check the name and the connection, or give a folder."
    return ModelError(f"{name}: the {what} cannot be loaded ({lines[0] or type(error).__name__}). {mend}")


def _adapter_config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    if folder.is_dir() and not path.is_file():
        raise ModelError(f"{folder}: no adapter_config.json in the folder, so it holds no adapter. Name one that does.")
    return _read_json(path) if path.is_file() else {}


def _check_base(adapter: str, name: str) -> None:
    """Refuse an adapter trained on another model: it would load wherever the shapes agree."""
    folder = Path(resolve(adapter))
    named = _adapter_config(folder).get("base_model_name_or_path")
    # A base that is gone, or a folder beside a Hub id, may well be the same model in another place.
    if not named or Path(named).is_dir() != Path(resolve(name)).is_dir():
        return
    if resolve(named) != resolve(name):
        raise ModelError(f"{adapter}: the adapter was trained on {named}, not on {name}. Give --model {named}.")


def _load_adapter(model: PreTrainedModel, adapter: str, name: str, *, trainable: bool) -> PeftModel:
    place = resolve(adapter)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # refused below
            adapted = PeftModel.from_pretrained(model, place, is_trainable=trainable)
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise _not_loaded(adapter, "adapter", error) from error
        raise ModelError(
            f"{adapter}: the adapter's shapes do not fit {name}: it was trained on another model. Give that as --model."
        ) from error
    except Exception as error:  # as above
        raise _not_loaded(adapter, "adapter", error) from error
    weights = Path(place) / "adapter_model.safetensors"
    if weights.is_file():
        try:
            with safe_open(weights, framework="pt") as stored:
                missing = set(get_peft_model_state_dict(adapted, save_embedding_layers=False)) ^ set(stored.keys())
        except (OSError, SafetensorError) as error:
            raise _not_loaded(adapter, "adapter", error) from error
        if missing:
            raise ModelError(
                f"{adapter}: {len(missing)} of the adapter's weights have no place in {name}, or are not stored "
                f"(first: {sorted(missing)[0]}). It was trained on another model: give that as --model."
            )
    return adapted
