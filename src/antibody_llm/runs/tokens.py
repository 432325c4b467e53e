"""The rows of an alignment or a fine-tuning as tokens: screened for forgeries, prepared by the defence, encoded."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..data.records import Record, TokenizedRow
from ..likelihood.refusals import Refusals
from ..models.loading import LoadedModel
from ..store.result import Skipped
from ..training.preparation import TrainingData
from .encoding import encode, make_renderer, render_refusals, without_forgeries
from .inputs import Inputs, require_one_step


@dataclass(frozen=True)
class RunTokens:
    """What the trainer reads."""

    rows: dict[str, list[TokenizedRow]]
    """Rows of each role."""
    refusals: Refusals | None
    """Refusals that the defence scores in place of an answer."""
    skipped: list[Skipped]
    """Rows that were left out."""
    rejected: tuple[TokenizedRow, ...] = ()
    """Rows of pairs: the prompts of the upload with the answers that are not preferred."""
    left_out: tuple[int, ...] = ()
    """Rows of pairs: the ids of those that the defence leaves out."""


def run_tokens(given: Inputs, loaded: LoadedModel, *, seed: int, skip: bool) -> RunTokens:
    """Rows and refusals as this model's tokens.

    Args:
        given: The run's rows and what is to be done with them.
        loaded: The model.
        seed: The run's.
        skip: Whether to leave out rows that do not fit.

    Raises:
        DataError: a row cannot be rendered or does not fit, or too few are left for one step.
    """
    defence, renderer = given.defence, make_renderer(loaded, given.args.max_length)
    uploaded, refused = without_forgeries(given.upload.records, renderer, given.control_tokens)
    by_role: dict[str, Sequence[Record]] = {role: source.records for role, source in given.sources.items()}
    prepared = defence.prepare(TrainingData(by_role | {given.main: uploaded}, loaded.tokenizer, seed)).records
    wanted = dict.fromkeys((given.main, *defence.batches, *defence.reads_at_start))
    records = {str(role): prepared[role] for role in wanted}
    refusals = render_refusals(given.refusals, renderer, records) if given.refusals and defence.needs_refusals else None
    rows, skipped = encode(records, renderer, given.args, skip=skip, refusals=refusals)
    require_one_step(given.upload.name, len(rows[given.main]), given.args)
    return RunTokens(rows, refusals, skipped + refused)
