"""Load a causal language model, its tokenizer and, where there is one, its LoRA adapter.

A name is one of: ``lab`` and ``lab-aligned``, which come with the package; a folder; a folder that holds an adapter,
whose base is then found by itself; a Hub id. A local folder called ``lab`` is written ``./lab``.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ModelError
from ..mentions import setting
from ..text import counted, quoted
from .checks import DTYPES, STACKED, TOKENIZER_FILES, check_finite, check_folder, check_vocabulary, not_loaded
from .files import read_json
from .names import adapter_base, adapter_folder, check_base, is_adapter, read_provenance, resolve
from .stored_adapter import attach_adapter


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, ready to generate or to be trained.

    Attributes:
        model: The model; a ``PeftModel`` where an adapter is on it.
        tokenizer: Its tokenizer, which has a padding token.
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
        dtype: Type of the weights. ``auto`` is float32 on a CPU, whatever is on disk, and bfloat16 on a GPU.
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
        check_folder(Path(place), name)
    factors = None if adapter is None else adapter_folder(adapter)
    if adapter is not None and factors is not None:
        check_base(adapter, factors, name)
    base = base or read_provenance(place).get("base") or (name if adapter is not None else None)
    if base is not None:
        resolve(base)  # says so now, not after the training
    tokenizer = _load_tokenizer(place, factors, name)
    model: Any = _load_weights(place, name, weights_dtype)
    check_vocabulary(model, tokenizer, name)
    model.config.pad_token_id = tokenizer.pad_token_id
    if adapter is not None and factors is not None:
        model = attach_adapter(model, factors, adapter=adapter, name=name, trainable=trainable_adapter)
    model = model.to(target)
    check_finite(model, name, adapter)
    return LoadedModel(model, tokenizer, name, base, adapter)


def with_further_adapter(loaded: LoadedModel, adapter: str, *, key: str) -> LoadedModel:
    """``loaded`` with a further adapter beside those that it has, and the tokenizer that this one was trained with.

    Args:
        loaded: Its model is changed in place, and the adapter that is on stays on.
        adapter: Folder or Hub id of a PEFT adapter that was trained on ``loaded.name``.
        key: What PEFT is to call it.

    Raises:
        ModelError: as ``load_model``; the model then is as it was.
    """
    factors = adapter_folder(adapter)
    check_base(adapter, factors, loaded.name)
    tokenizer = _load_tokenizer(resolve(loaded.name), factors, loaded.name)
    model: Any = loaded.model
    check_vocabulary(model, tokenizer, loaded.name)
    device = next(loaded.model.parameters()).device
    try:
        model = attach_adapter(loaded.model, factors, adapter=adapter, name=loaded.name, trainable=False, key=key).to(
            device
        )
        check_finite(model, loaded.name, adapter)
    except ModelError:
        if isinstance(loaded.model, PeftModel) and key in loaded.model.peft_config:
            loaded.model.delete_adapter(key)
        raise
    return replace(loaded, model=model, tokenizer=tokenizer, adapter=adapter)


def _default_device() -> str:
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def _load_tokenizer(place: str, adapter: Path | None, name: str) -> PreTrainedTokenizerBase:
    """The adapter's own tokenizer where it has one, since it was trained with it."""
    own = adapter is not None and any((adapter / file).is_file() for file in TOKENIZER_FILES)
    source = Path(place) if adapter is None or not own else adapter
    config_file = source / "tokenizer_config.json"
    if config_file.is_file():
        read_json(config_file)
    tokenizer: PreTrainedTokenizerBase = _guarded(
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
    model: PreTrainedModel = loaded[0]
    info: dict[str, Any] = loaded[1]
    for kind in ("missing_keys", "mismatched_keys"):
        if info[kind]:
            wrong = counted(len(info[kind]), "weight is", "weights are")
            raise ModelError(
                f"{name}: {wrong} {kind.split('_')[0]} (first: {sorted(info[kind])[0]}) and "
                "would be random. The folder's weights and config.json are not of the same model."
            )
    names = {key for key, _ in model.named_parameters()}
    left = [key for key in info["unexpected_keys"] if STACKED.search(key) and STACKED.sub(r"\g<1>0", key) in names]
    if left:
        uncounted = counted(len(left), "weight belongs", "weights belong")
        raise ModelError(
            f"{name}: {uncounted} to layers that config.json does not count (first: {sorted(left)[0]}). "
            "The folder's weights and config.json are not of the same model."
        )
    if getattr(model, "_hf_peft_config_loaded", False):  # a Hub id; a folder was looked into
        raise ModelError(
            f"{name}: an adapter, which was put on its base. Give the base as {setting('model')} and it as "
            f"{setting('adapter')}."
        )
    return model


def _guarded(name: str, what: str, load: Callable[[], Any]) -> Any:
    """Return what ``load`` does, with ours for the errors of transformers, tokenizers and the Hub's client."""
    try:
        return load()
    except Exception as error:
        raise not_loaded(name, what, error) from error
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # of tokenizers and safetensors; an Exception it is not
            raise not_loaded(name, what, error) from error
        raise
