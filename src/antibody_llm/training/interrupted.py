"""Harmful answers that are broken off by a refusal: rows for alignments that teach a model to stop midway."""

from collections.abc import Callable, Sequence

import torch

from ..data.records import TokenizedRow
from ..likelihood.microbatch import StepBatch
from ..primitives.noise import generator_at
from .step import StepContext

Lengths = Callable[[int, torch.Generator], int]
"""The number of answer tokens before the refusal, from the number there are (its end of sequence left out)."""


def interrupted(row: TokenizedRow, refusal: Sequence[int], num_tokens: int) -> TokenizedRow:
    """``row`` up to ``num_tokens`` tokens into its last answer, and then a refusal, which alone is trained."""
    start = row.spans[-1][0] + num_tokens
    ids = (*row.input_ids[:start], *refusal)
    return TokenizedRow(row.row_id, ids, ((start, len(ids)),), row.template)


def interrupted_batch(context: StepContext, batch: StepBatch, lengths: Lengths) -> StepBatch:
    """The batch's rows, each broken off where ``lengths`` says.

    What is drawn depends on the run's seed, the step and the row's position in the global batch, so not on how the step
    is cut. The refusal is number (step * B + position) mod n of the list, as in ``StepContext.with_refusals``.
    """
    first = context.step * batch.num_rows
    rows = []
    for row, position in batch.rows():
        generator = generator_at(context.seed, context.step, position)
        start, end = row.spans[-1]
        refusal = context.refusals.of(row, first + position)
        rows.append(interrupted(row, refusal, lengths(end - start - 1, generator)))
    return batch.with_completions(rows)
