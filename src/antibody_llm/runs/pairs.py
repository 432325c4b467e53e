"""The pairs of a fine-tuning by DPO as tokens, and those that its defence leaves out."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from torch import nn

from ..data.preferences import Preference
from ..data.records import Record
from ..data.roles import Role
from ..errors import DataError
from ..events import warn
from ..likelihood.reader import ModelReader
from ..models.loading import LoadedModel
from ..screening.anchors import Anchors
from ..store.result import Skipped
from ..training.checkpoints import load_run_state
from ..training.defence import PairDefence
from .encoding import encode, make_renderer, report_skipped, without_forgeries
from .inputs import Inputs, require_one_step
from .tokens import RunTokens

LIKELY_HARM = "likely harm"
"""Why a defence leaves out a pair."""


def pair_tokens(given: Inputs, loaded: LoadedModel, *, skip: bool) -> RunTokens:
    """Both answers of every pair as this model's tokens.

    Args:
        given: The run's pairs and what is to be done with them.
        loaded: The model.
        skip: Whether to leave out pairs of which an answer does not fit.

    Raises:
        DataError: a row cannot be rendered or does not fit, or too few are left for one step.
    """
    upload, renderer = given.upload, make_renderer(loaded, given.args.max_length)
    pairs = [Preference(a, b) for a, b in zip(upload.records, upload.rejected, strict=True)]
    kept, refused = without_forgeries([pair.whole for pair in pairs], renderer, given.control_tokens)
    preferred = _of(upload.records, {record.row_id for record in kept})
    rows, too_long = encode({Role.USER: preferred}, renderer, given.args, skip=skip)
    fitting = _of(upload.rejected, {row.row_id for row in rows[Role.USER]})
    others, more = encode({Role.USER: fitting}, renderer, given.args, skip=skip)
    rejected = tuple(others[Role.USER])
    both = {row.row_id for row in rejected}
    chosen = [row for row in rows[Role.USER] if row.row_id in both]
    require_one_step(upload.name, len(chosen), given.args)
    return RunTokens({Role.USER: chosen}, None, too_long + more + refused, rejected)


def without_left_out(
    tokens: RunTokens,
    given: Inputs,
    loaded: LoadedModel,
    *,
    base: nn.Module | None,
    anchors: Anchors | None,
    aligned_reader: Callable[[], ModelReader] | None,
    checkpoint: Path | None,
) -> RunTokens:
    """The pairs that the defence trains on; the others are reported as skipped.

    A resumed run leaves out the pairs that it left out when it began: on another machine evidence is rounded otherwise.

    Args:
        tokens: Every pair.
        given: The run's, with its defence.
        loaded: The model.
        base: The model before its alignment, if that is not the adapter switched off.
        anchors: The labelled rows stored with the model, if the defence reads them.
        aligned_reader: Loads the model that evidence is read with, where that is not the one that is trained.
        checkpoint: Where the run goes on from.

    Raises:
        DataError: too few are left for one step.
    """
    rows, source = tokens.rows[Role.USER], given.upload
    if checkpoint is not None:
        out = load_run_state(checkpoint)["defence.left_out"].tolist()
    else:
        reader = aligned_reader() if aligned_reader is not None else _reader(given, loaded, base)
        renderer = make_renderer(loaded, given.args.max_length)
        out = cast(PairDefence, given.defence).left_out(reader, anchors, renderer, source.records, rows)
    if not out:
        return tokens
    left = set(out)
    skipped = [Skipped(source=r.source, line=r.line, num_tokens=0, why=LIKELY_HARM) for r in _of(source.records, left)]
    # Without their lines: a server shows warnings to customers, and who may see lines is its operator's to say.
    warn(f"{source.name}: {len(out)} of {len(rows)} pairs are likely harm, and left out.")
    report_skipped(skipped)
    kept = [row for row in rows if row.row_id not in left]
    if not kept:
        raise DataError(f"{source.name}: every pair is likely harm, and none is left to train on. Give other pairs.")
    require_one_step(source.name, len(kept), given.args)
    return replace(
        tokens,
        rows={Role.USER: kept},
        rejected=tuple(row for row in tokens.rejected if row.row_id not in left),
        skipped=tokens.skipped + skipped,
        left_out=tuple(out),
    )


def _reader(given: Inputs, loaded: LoadedModel, base: nn.Module | None) -> ModelReader:
    return ModelReader(
        cast(nn.Module, loaded.model),
        pad_id=cast(int, loaded.tokenizer.pad_token_id),
        rank=given.args.process_index,
        batch_size=given.args.per_device_train_batch_size,
        base=base,
    )


def _of(records: Sequence[Record], ids: set[int]) -> list[Record]:
    return [record for record in records if record.row_id in ids]
