"""Save a model or an adapter as a whole or not at all.

Files are written to a sibling folder, which is renamed when complete. Whatever goes wrong, what was there before is
still there; what a killed process leaves beside it is removed by the next save.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ModelError, OutputError
from ..files import flush, from_the_disk, held, is_held, reason
from .checks import DTYPES
from .files import read_json
from .names import PACKAGED, PROVENANCE, resolve


def save_adapter(
    model: PeftModel,
    folder: str | Path,
    *,
    base: str,
    tokenizer: PreTrainedTokenizerBase,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Save the adapter and the tokenizer, for ``PeftModel.from_pretrained`` and for ``load_model``.

    Args:
        model: Its adapter is saved, without the model under it.
        folder: A folder that is new, empty, or an earlier save of an adapter, which is replaced.
        base: The model under the adapter; stored as the absolute folder or the Hub id that it resolves to.
        tokenizer: The tokenizer, saved beside it.
        provenance: Further entries of ``antibody.json``.

    Raises:
        OutputError: the folder holds something else, or the adapter did not fit on the disk.
        ModelError: there is no adapter, ``base`` is nowhere, or low-rank factors are not all that was trained.
    """
    if not isinstance(model, PeftModel):
        raise ModelError("the model has no adapter to save. Save the whole model instead.")
    place = resolve(base)
    _check_servable(model, place, tokenizer)
    with _replacing(Path(folder), "adapter_config.json") as new:
        # "auto" would ask the Hub whether the vocabulary has grown; adapters here never train embeddings.
        model.save_pretrained(str(new), save_embedding_layers=False)
        _update_json(new / "adapter_config.json", {"base_model_name_or_path": place})
        tokenizer.save_pretrained(new)
        _update_json(new / PROVENANCE, {**(provenance or {}), "kind": "adapter", "base": _portable(base)})


def save_model(
    model: PreTrainedModel | PeftModel,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase,
    base: str | None = None,
    dtype: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Save the whole model and its tokenizer as an ordinary Hugging Face folder.

    Args:
        model: A model without adapter.
        folder: A folder that is new, empty, or an earlier save of a model, which is replaced.
        tokenizer: The tokenizer, saved beside it.
        base: The model it was aligned from; ``load_model`` reads it.
        dtype: Type of the weights on disk; by default as they are.
        provenance: Further entries of ``antibody.json``.

    Raises:
        OutputError: the folder holds something else, or the model did not fit on the disk.
        ModelError: the model has an adapter.
    """
    if isinstance(model, PeftModel):
        raise ModelError("the model has an adapter on it. Save the adapter, or merge it first.")
    with _replacing(Path(folder), "config.json") as new:
        if dtype is None:
            model.save_pretrained(new)
        else:
            model.save_pretrained(new, state_dict=_cast(model, DTYPES[dtype]))
            _update_json(new / "config.json", {"dtype": dtype})
        tokenizer.save_pretrained(new)
        _update_json(
            new / PROVENANCE, {**(provenance or {}), "kind": "model"} | ({"base": _portable(base)} if base else {})
        )


def _portable(base: str) -> str:
    """``base`` as it is found from any working directory; a packaged name stays, as packages move."""
    return base if base in PACKAGED else resolve(base)


def _check_servable(model: PeftModel, place: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse an adapter of which a part would be lost, or which servers do not load (vLLM: vllm/lora/)."""
    config: Any = model.peft_config["default"]
    if config.modules_to_save or config.bias != "none" or getattr(config, "trainable_token_indices", None):
        raise ModelError(
            "the adapter trains whole weights (modules_to_save, bias or tokens). Merge it, or train without."
        )
    lost = [key for key, value in model.named_parameters() if value.requires_grad and ".lora_" not in key]
    if lost:
        raise ModelError(
            f"{len(lost)} trained weights are no part of the adapter (first: {lost[0]}) and would be lost. Freeze them "
            "before training, or save the whole model."
        )
    bare: Any = model.get_base_model()
    num_embeddings, config_file = bare.get_input_embeddings().weight.shape[0], Path(place) / "config.json"
    entries = read_json(config_file) if config_file.is_file() else {}
    of_base = (entries.get("text_config") or entries).get("vocab_size", num_embeddings)
    if num_embeddings != of_base or len(tokenizer) > num_embeddings:
        raise ModelError(
            f"the model has {num_embeddings} embeddings and {len(tokenizer)} tokens, its base {of_base} embeddings: an "
            "adapter does not hold added tokens. Add them to the base, save that, and train an adapter on it."
        )


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The state dict in ``dtype``; tied weights stay one tensor, so that they are still stored once."""
    seen: dict[int, torch.Tensor] = {}
    state = {}
    for name, tensor in model.state_dict().items():
        cast = tensor.to(dtype) if tensor.is_floating_point() else tensor
        state[name] = seen.setdefault(tensor.data_ptr(), cast)
    return state


@contextmanager
def _replacing(folder: Path, marker: str) -> Iterator[Path]:
    """A new empty folder that takes the place of ``folder`` if the block ends well.

    Args:
        folder: The place of the result. If it exists it is empty, or holds ``marker``.
        marker: The file by which an earlier save of the same kind is known.
    """
    folder = folder.resolve()
    new, old = (folder.with_name(f".{folder.name}.{kind}-{os.getpid()}") for kind in ("new", "old"))
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder}: a file is there. Choose another folder, or remove it.")
        _clear_leftovers(folder)
        if folder.exists() and any(folder.iterdir()) and not (folder / marker).is_file():
            raise OutputError(
                f"{folder}: holds something else (no {marker}). Choose another folder, or empty this one."
            )
        new.mkdir(parents=True)
        with ExitStack() as holding:
            holding.enter_context(held(new))
            yield new
            _flush(new)
            if folder.exists():
                holding.enter_context(held(folder))
                folder.rename(old)
            try:
                new.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
    except Exception as error:
        if not from_the_disk(error):
            raise
        raise OutputError(
            f"{folder}: could not be saved ({reason(error)}). What was there before is unchanged. "
            "Free some space or choose another folder, then run again."
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if folder.exists():  # never the last copy
            shutil.rmtree(old, ignore_errors=True)


def _clear_leftovers(folder: Path) -> None:
    """Remove what a killed process left of a save to ``folder``; restore an earlier save that it had moved aside."""
    if not folder.parent.is_dir():
        return
    name = re.compile(rf"\.{re.escape(folder.name)}\.(new|old)-\d+")
    for path in sorted(folder.parent.iterdir()):
        if not (found := name.fullmatch(path.name)) or is_held(path):
            continue
        if found[1] == "old" and not folder.exists():
            path.rename(folder)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Flush the files to the disk, readable like any other, before the rename makes them count."""
    mode = (folder / PROVENANCE).stat().st_mode  # by the umask, where safetensors lets only the owner read
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
    flush(*folder.rglob("*"), folder)


def _update_json(path: Path, entries: Mapping[str, Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | dict(entries), indent=2) + "\n", encoding="utf-8")
