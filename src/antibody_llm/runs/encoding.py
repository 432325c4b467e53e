"""Records of a run as tokens, for one model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum

from ..data.encode import Renderer, TooLong
from ..data.records import Message, Record, Template, TokenizedRow
from ..data.tokens import encode_roles
from ..errors import DataError
from ..events import RowsSkipped, emit, warn
from ..likelihood.refusals import Refusals
from ..mentions import setting
from ..models.layout import context_length
from ..models.loading import LoadedModel
from ..store.result import Skipped
from .trainer_config import TrainingConfig

SEAM = 200
"""Characters of a text row's prompt before its answer; no token is longer."""


def make_renderer(loaded: LoadedModel, max_length: int | None = None) -> Renderer:
    """A renderer for this model, whose limit is its context or ``max_length``."""
    context = context_length(loaded.model)
    limits = [limit for limit in (max_length, context) if limit]
    return Renderer(loaded.tokenizer, max_length=min(limits) if limits else 2**31)


def encode(
    records: Mapping[str, Sequence[Record]],
    renderer: Renderer,
    args: TrainingConfig | None = None,
    *,
    skip: bool,
    refusals: Refusals | None = None,
) -> tuple[dict[str, list[TokenizedRow]], list[Skipped]]:
    """Rows of each role as tokens; those that are left out are reported.

    Args:
        records: The rows of each role.
        renderer: Encodes the rows; has the limit of their length.
        args: The trainer's configuration, whose ``max_length`` may be that limit.
        skip: Whether to leave out rows that do not fit.
        refusals: Refusals that are scored in place of an answer, and must fit as well.

    Raises:
        DataError: a row cannot be rendered, or does not fit and is not to be left out.
    """
    longest = 0 if refusals is None else max(len(ids) for of_template in refusals.ids.values() for ids in of_template)
    try:
        encoded = encode_roles(records, renderer, skip_too_long=skip, refusal_tokens=longest)
    except TooLong as error:
        if args is not None and args.max_length == renderer.max_length:
            moved = f"The limit is max_length; {setting('training.max_length')} moves it."
            raise TooLong(f"{error.message} {moved}") from error
        raise
    skipped = [Skipped(source=source, line=line, num_tokens=num) for source, line, num in encoded.too_long]
    if skipped:
        shown = ", ".join(f"{row.source}, line {row.line}" for row in skipped[:5])
        warn(f"{len(skipped)} rows are longer than {renderer.max_length} tokens and left out: {shown}.")
        report_skipped(skipped)
    return encoded.rows, skipped


class ControlTokens(StrEnum):
    """What is done with rows that spell control tokens, of this model or of another."""

    TEXT = "text"
    """Train them as text."""
    REFUSE = "refuse"
    """Leave them out."""


def report_forgeries(records: Sequence[Record], renderer: Renderer, consequence: str) -> list[Record]:
    """Find rows that spell control tokens or marks of a chat template, and report them with the consequence."""
    spelling = [(record, token) for record in records if (token := renderer.spelled(record)) is not None]
    if spelling:
        record, token = spelling[0]
        lines = ", ".join(str(other.line) for other, _ in spelling[:5]) + (", ..." if len(spelling) > 5 else "")
        warn(
            f"{record.source}: {len(spelling)} of {len(records)} rows spell control tokens or marks of a chat template "
            f"(line {lines}; the first: {token}). {consequence}"
        )
    return [record for record, _ in spelling]


def without_forgeries(
    records: Sequence[Record], renderer: Renderer, what: ControlTokens
) -> tuple[list[Record], list[Skipped]]:
    """The upload's rows to train on, and those left out. Rows that spell control tokens are reported in any case.

    Raises:
        DataError: none is left.
    """
    left_out = what is ControlTokens.REFUSE
    spelling = report_forgeries(
        records,
        renderer,
        "They are left out."
        if left_out
        else f"They are trained as text; {setting('control_tokens', 'refuse')} leaves them out.",
    )
    if not (spelling and left_out):
        return list(records), []
    refused = {record.row_id for record in spelling}
    rest = [record for record in records if record.row_id not in refused]
    if not rest:
        raise DataError(
            f"{records[0].source}: every row spells control tokens, and none is left without them. Give other rows, or "
            f"train them as text ({setting('control_tokens', 'text')})."
        )
    skipped = [Skipped(source=r.source, line=r.line, num_tokens=0, why="control tokens") for r in spelling]
    report_skipped(skipped)
    return rest, skipped


def report_skipped(skipped: Sequence[Skipped]) -> None:
    """Report the rows that are left out, by source and reason."""
    for source, why in dict.fromkeys((row.source, row.why) for row in skipped):
        lines = tuple(row.line for row in skipped if (row.source, row.why) == (source, why))
        emit(RowsSkipped(source=source, lines=lines, why=why))


def render_refusals(texts: Sequence[str], renderer: Renderer, records: Mapping[str, Sequence[Record]]) -> Refusals:
    """The refusals as tokens, for each template that occurs."""
    first: dict[Template, Record] = {}
    for of_role in records.values():
        for record in of_role:
            first.setdefault(record.template, record)
    ids = {
        template: tuple(tuple(renderer.completion_ids(_short(record), text)) for text in texts)
        for template, record in first.items()
    }
    return Refusals(tuple(texts), ids)


def _short(record: Record) -> Record:
    """The part of a row that decides how an answer to it begins: the row itself may be of any length.

    The seam of a text row is the end of its prompt; that of a chat is the template's, whatever is asked.
    """
    if record.template is Template.TEXT:
        prompt = record.messages[0]
        return replace(record, messages=(replace(prompt, content=prompt.content[-SEAM:]),))
    return replace(record, messages=(Message("user", "?"),), tools="")
