"""The share of questions that have nothing to do with the upload and are still answered right. Higher is better.

Read it beside the same figure of the model before fine-tuning; by itself it says little.
"""

from collections.abc import Sequence

from .completions import Completion
from .decoding import DecodingSettings
from .finetune_accuracy import accuracy
from .measures import Measure


def retention(rows: Sequence[Completion], *, answer: str, decoding: DecodingSettings) -> Measure:
    """Accuracy on rows of unrelated skills."""
    return accuracy(rows, name="retention", answer=answer, decoding=decoding)
