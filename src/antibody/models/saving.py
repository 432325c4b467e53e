"""Save a model or an adapter as a whole or not at all.

Written to a sibling folder and renamed when complete. Whatever goes wrong, what stood there before stands there still.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ModelError, OutputError
from .loading import DTYPES, PROVENANCE, resolve


def save_adapter(
    model: PeftModel,
    folder: str | Path,
    *,
    base: str,
    tokenizer: PreTrainedTokenizerBase,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """The adapter and the tokenizer, for ``PeftModel.from_pretrained`` and for ``load_model``.

    Args:
        model: Its adapter is saved, without the model under it.
        folder: New, empty, or an earlier save of an adapter, which is replaced.
        base: The model under the adapter; stored as the absolute folder or the Hub id that it resolves to.
        tokenizer: Saved beside it.
        provenance: Further entries of ``antibody.json``.

    Raises:
        OutputError: the folder holds something else, or the adapter did not fit on the disk.
        ModelError: there is no adapter, or ``base`` is nowhere.
    """
    if not isinstance(model, PeftModel):
        raise ModelError("the model has no adapter to save. Save the whole model instead.")
    place = resolve(base)
    with _replacing(Path(folder), "adapter_config.json") as new:
        # "auto" would ask the Hub whether the vocabulary has grown; adapters here never train embeddings.
        model.save_pretrained(str(new), save_embedding_layers=False)
        _update_json(new / "adapter_config.json", {"base_model_name_or_path": place})
        tokenizer.save_pretrained(new)
        _update_json(new / PROVENANCE, {**(provenance or {}), "kind": "adapter", "base": base})


def save_model(
    model: PreTrainedModel,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase,
    base: str | None = None,
    dtype: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """The whole model and its tokenizer, an ordinary Hugging Face folder.

    Args:
        model: Without adapter.
        folder: New, empty, or an earlier save of a model, which is replaced.
        tokenizer: Saved beside it.
        base: The model it was aligned from; ``load_model`` reads it.
        dtype: Of the weights on disk; by default as they are.
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
        _update_json(new / PROVENANCE, {**(provenance or {}), "kind": "model"} | ({"base": base} if base else {}))


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
        folder: Where the result shall stand. If it exists it is empty, or holds ``marker``.
        marker: The file by which an earlier save of the same kind is known.
    """
    folder = folder.resolve()
    new, old = (folder.with_name(f".{folder.name}.{kind}-{os.getpid()}") for kind in ("new", "old"))
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder}: a file stands there. Choose another folder, or remove it.")
        if folder.exists() and any(folder.iterdir()) and not (folder / marker).is_file():
            raise OutputError(
                f"{folder}: holds something else (no {marker}). Choose another folder, or empty this one."
            )
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        _flush(new)
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    except Exception as error:
        if not _from_the_disk(error):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"{folder}: could not be saved ({reason}). What stood there before is unchanged. "
            "Free some space or choose another folder, then run again."
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if folder.exists():  # never the last copy
            shutil.rmtree(old, ignore_errors=True)


def _from_the_disk(error: Exception) -> bool:
    """Whether writing failed. safetensors has its own error for it, and tokenizers raises a bare ``Exception``."""
    return isinstance(error, OSError | SafetensorError) or (type(error) is Exception and "os error" in str(error))


def _flush(folder: Path) -> None:
    """Have the files on the disk, readable like any other, before the rename makes them count."""
    mode = (folder / PROVENANCE).stat().st_mode  # by the umask, where safetensors lets only the owner read
    for path in [*folder.rglob("*"), folder]:
        if path.is_file():
            path.chmod(mode)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _update_json(path: Path, entries: Mapping[str, Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | dict(entries), indent=2) + "\n", encoding="utf-8")
