"""Records of a run as tokens, for one model."""

import logging
from collections.abc import Mapping, Sequence

from trl import SFTConfig

from ..data.encode import Renderer, encode_rows
from ..data.records import Record, Template, TokenizedRow
from ..errors import DataError
from ..models.loading import LoadedModel
from ..training.refusals import Refusals
from .result import Skipped

log = logging.getLogger("antibody")


def make_renderer(loaded: LoadedModel, max_length: int | None = None) -> Renderer:
    """Renders for this model, up to its context or ``max_length``."""
    context = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    limits = [limit for limit in (max_length, context) if limit]
    return Renderer(loaded.tokenizer, max_length=min(limits) if limits else 2**31)


def encode(
    records: Mapping[str, Sequence[Record]], renderer: Renderer, args: SFTConfig | None = None, *, skip: bool
) -> tuple[dict[str, list[TokenizedRow]], list[Skipped]]:
    """Rows of each role as tokens, file by file, so that an error names the right one."""
    rows: dict[str, list[TokenizedRow]] = {}
    skipped: list[Skipped] = []
    for role, of_role in records.items():
        rows[role] = []
        for source in dict.fromkeys(record.source for record in of_role):
            some = [record for record in of_role if record.source == source]
            try:
                encoded = encode_rows(some, renderer, skip_too_long=skip)
            except DataError as error:
                if args is not None and args.max_length == renderer.max_length and "longer than" in str(error):
                    raise DataError(f"{error} The limit is max_length; --train max_length=N moves it.") from error
                raise
            rows[role] += encoded.rows
            skipped += [Skipped(source=source, line=line, num_tokens=num) for line, num in encoded.too_long]
    if skipped:
        shown = ", ".join(f"{row.source}, line {row.line}" for row in skipped[:5])
        log.warning("%d rows are longer than %d tokens and left out: %s.", len(skipped), renderer.max_length, shown)
    return rows, skipped


def render_refusals(texts: Sequence[str], renderer: Renderer, records: Mapping[str, Sequence[Record]]) -> Refusals:
    """The refusals as tokens, for each template that occurs."""
    first: dict[Template, Record] = {}
    for of_role in records.values():
        for record in of_role:
            first.setdefault(record.template, record)
    ids = {
        template: tuple(tuple(renderer.completion_ids(record, text)) for text in texts)
        for template, record in first.items()
    }
    return Refusals(tuple(texts), ids)
