"""What is read besides rows: the anchors stored with the model, the model before its alignment, and the aligned one."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from torch import nn
from transformers import PreTrainedTokenizerBase

from ..data.encode import Renderer
from ..data.records import Message, Record, Template
from ..errors import ModelError
from ..likelihood.reader import ModelReader
from ..likelihood.refusals import Refusals
from ..mentions import setting
from ..models.layout import require_same_shape
from ..models.loading import LoadedModel, load_model
from ..models.names import ALIGNED_WEIGHTS, read_provenance, resolve
from ..screening.anchors import ANCHORS, Anchors, absent_anchors, read_anchors, require_templates
from ..store.naming import aligned_of, weights_fingerprint
from ..training.defence import Defence
from .encoding import render_refusals

OTHER_WAYS = "fine-tune the aligned model on all rows at once, or go on under another defence."


def checked_resources(
    defence: Defence, name: str, adapter: str | None, base: str | None, upload: Sequence[Record]
) -> Anchors | None:
    """The anchors that a defence reads, and whether it has a base, before any model is loaded.

    Args:
        defence: What needs them.
        name: The model whose evidence is read.
        adapter: The adapter that it was aligned with; it then has the anchors.
        base: The model before its alignment, as far as that is known.
        upload: The rows that will be compared with the anchors.

    Returns:
        None where the defence reads no anchors.

    Raises:
        ModelError: the model carries no anchors, or the model before its alignment is not known.
        DataError: the upload has rows of a template that no anchor has.
    """
    if defence.needs_base and base is None:
        raise ModelError(
            f"{adapter or name} does not say which model it was before its alignment, and this defence compares the "
            f"two. Name it: {setting('base')}."
        )
    if not defence.needs_anchors:
        return None
    anchors = read_anchors(Path(resolve(adapter or name)))
    if anchors is None:
        raise _absent(adapter or name)
    require_templates(anchors, upload)
    return anchors


def _absent(model: str) -> ModelError:
    """Why a model has no anchors. One that was fine-tuned is not to get any: an upload has shaped how it reads rows."""
    if read_provenance(resolve(model)).get("verb") != "finetune":
        return absent_anchors(model)
    return ModelError(
        f"{model} carries no anchors: it was fine-tuned, and this defence weighs rows by what alignment changed, as "
        "the aligned model reads them. Fine-tune it on all rows at once, or go on under another defence."
    )


def evidence_model(defence: Defence, name: str, adapter: str | None) -> str | None:
    """The aligned model whose evidence a run reads, where the model that it trains is a fine-tuned one of its line.

    An upload has shaped a fine-tuned model. If evidence were read with it, that upload would decide how the next one
    is judged, and the anchors' stored scores do not hold for it.

    Args:
        defence: What reads the evidence.
        name: The model that is trained.
        adapter: The adapter on it that is trained.

    Returns:
        None where that is the trained model itself, or is not known: ``checked_resources`` says so.

    Raises:
        ModelError: it is not there any more, or other weights are.
    """
    tuned = adapter or name
    if not (defence.needs_anchors and defence.reads_evidence_apart) or (Path(resolve(tuned)) / ANCHORS).is_file():
        return None
    aligned = aligned_of(name, adapter)
    if aligned is None:
        return None
    why = f"{tuned} was fine-tuned from {aligned}, and this defence reads evidence with that aligned model"
    try:
        found = weights_fingerprint(aligned)
    except ModelError as error:
        raise ModelError(f"{why}, which is not there any more. Put it back, {OTHER_WAYS}") from error
    trained_on = read_provenance(resolve(tuned)).get(ALIGNED_WEIGHTS)
    if trained_on is not None and found != trained_on:
        raise ModelError(f"{why}, but other weights are there now. Put the earlier ones back, {OTHER_WAYS}")
    return aligned


def aligned_reader(
    name: str,
    base: str | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    refusals: Refusals | None,
    dtype: str,
    rank: int,
    batch_size: int,
) -> ModelReader:
    """Load the aligned model that evidence is read with, and the one before its alignment, both frozen.

    Args:
        name: The aligned model.
        base: The model before its alignment.
        tokenizer: That of the model that is trained, which made tokens of rows and refusals.
        refusals: Generic refusals.
        dtype: Type of the weights of both.
        rank: This process's number among those that share the rows.
        batch_size: Rows of one forward pass.

    Raises:
        ModelError: one of them does not load, or makes other tokens of the same rows.
    """
    aligned = load_model(name, base=base, dtype=dtype)
    same = aligned.tokenizer.get_vocab() == tokenizer.get_vocab()
    if not same or aligned.tokenizer.chat_template != tokenizer.chat_template:
        raise ModelError(
            f"{name}: its tokenizer's {'chat template' if same else 'vocabulary'} is not that of the model that was "
            "fine-tuned from it, so that the two would read other rows. Give both the same tokenizer, " + OTHER_WAYS
        )
    return ModelReader(
        cast(nn.Module, aligned.model).requires_grad_(False),
        pad_id=cast(int, aligned.tokenizer.pad_token_id),
        refusals=refusals,
        rank=rank,
        batch_size=batch_size,
        base=before_alignment(aligned, dtype),
    )


def before_alignment(loaded: LoadedModel, dtype: str = "auto") -> nn.Module | None:
    """The model before its alignment, frozen, in ``dtype``; None where that is the adapter switched off."""
    if loaded.adapter_off_is_base:
        return None
    return earlier_model(loaded, cast(str, loaded.base), "base", dtype)


def earlier_model(loaded: LoadedModel, name: str, key: str, dtype: str = "auto") -> nn.Module | None:
    """An earlier model of the line of ``loaded``, frozen; None where that is its adapter switched off.

    Args:
        loaded: The model that is compared.
        name: The earlier one.
        key: The setting that names it, ``base`` or ``aligned``, for the error.
        dtype: Type of its weights.

    Raises:
        ModelError: the two cannot be compared.
    """
    if loaded.adapter is not None and resolve(name) == resolve(loaded.name):
        return None
    earlier = cast(nn.Module, load_model(name, dtype=dtype).model)
    require_same_shape(cast(nn.Module, loaded.model), earlier, named=name, num_tokens=len(loaded.tokenizer), key=key)
    return earlier.requires_grad_(False)


def examples(templates: Iterable[Template], source: str) -> list[Record]:
    """A record of each template, behind which refusals are rendered: a row of an upload may be of any length.

    Args:
        templates: Each may occur several times.
        source: What errors call the rows that the records are in place of.
    """
    messages = (Message("user", "?"), Message("assistant", "."))
    return [Record(0, messages, template, source, 0) for template in dict.fromkeys(templates)]


def model_reader(
    loaded: LoadedModel,
    before: nn.Module | None,
    renderer: Renderer,
    *,
    refusals: Sequence[str],
    examples: Sequence[Record],
    batch_size: int,
) -> ModelReader:
    """The reader of an aligned model and the one before it, outside training.

    Args:
        loaded: The aligned model.
        before: The model before its alignment; None where that is the adapter switched off, or is not read.
        renderer: Renders for the aligned model.
        refusals: One-line refusals.
        examples: A record of each template that rows have.
        batch_size: Rows of one forward pass.
    """
    return ModelReader(
        cast(nn.Module, loaded.model),
        pad_id=cast(int, loaded.tokenizer.pad_token_id),
        refusals=render_refusals(refusals, renderer, {"": examples}),
        batch_size=batch_size,
        base=before,
    )
