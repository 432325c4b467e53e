"""Accuracy on the user's own task: the share of test rows answered as the reference answers. Higher is better."""

from collections.abc import Sequence

from ..errors import EvaluationError
from .answers import UnreadableReference, answer_rule
from .completions import Completion
from .decoding import DecodingSettings
from .measures import Measure, share


def accuracy(rows: Sequence[Completion], *, name: str, answer: str, decoding: DecodingSettings) -> Measure:
    """Share of ``rows`` whose completion agrees with their reference by the rule ``answer`` (see ``answers.py``).

    Raises:
        EvaluationError: There is no row, or a row whose reference is missing or unreadable by that rule; names it.
    """
    correct = answer_rule(answer)
    hits = []
    for row in rows:
        if row.reference is None:
            raise EvaluationError(
                f"{name}: row id {row.row_id} has no reference answer to compare with. A test row ends with the "
                "assistant's answer; append it, or remove the row."
            )
        try:
            hits.append(correct(row.completion, row.reference))
        except UnreadableReference as error:
            raise EvaluationError(
                f"{name}: the reference answer of row id {row.row_id} {error} and cannot be compared by {answer!r}. "
                "Correct the row, or choose another answer rule."
            ) from None
    return share(hits, name=name, judge=answer, decoding=decoding)


def finetune_accuracy(rows: Sequence[Completion], *, answer: str, decoding: DecodingSettings) -> Measure:
    """Accuracy on test rows of the user's task."""
    return accuracy(rows, name="finetune_accuracy", answer=answer, decoding=decoding)
