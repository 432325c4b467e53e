"""What is read besides rows: the anchors stored with the model, and the model before its alignment."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from torch import nn

from ..data.encode import Renderer
from ..data.records import Message, Record, Template
from ..errors import ModelError
from ..likelihood.reader import ModelReader
from ..mentions import setting
from ..models.layout import require_same_shape
from ..models.loading import LoadedModel, load_model
from ..models.names import read_provenance, resolve
from ..screening.anchors import Anchors, absent_anchors, read_anchors, require_templates
from ..training.defence import Defence
from .encoding import render_refusals


def checked_resources(
    defence: Defence, name: str, adapter: str | None, base: str | None, upload: Sequence[Record]
) -> Anchors | None:
    """The anchors that a defence reads, and whether it has a base, before any model is loaded.

    Args:
        defence: What needs them.
        name: The aligned model.
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
        "the aligned model reads them. Fine-tune the aligned model on all rows at once, or go on under another defence."
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
