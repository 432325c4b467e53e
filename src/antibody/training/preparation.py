"""What a data-side defence may change before anything is tokenised, and what it asks of whoever serves the model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from ..data.records import Message, Record


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The rows of a run by role, before tokenisation.

    Attributes:
        records: By role. A row that a defence adds to the upload has a negative ``row_id`` (``added``), so that it is
            never taken for one of the user's.
        tokenizer: The model's.
        seed: The run's.
        embed: Rows of text to vectors [n, d], for defences that spread over meanings; None where nothing can embed.
    """

    records: Mapping[str, Sequence[Record]]
    tokenizer: PreTrainedTokenizerBase
    seed: int
    embed: Callable[[Sequence[str]], Sequence[Sequence[float]]] | None = None

    def with_records(self, role: str, records: Sequence[Record]) -> "TrainingData":
        """The same with other rows in one role."""
        return replace(self, records={**self.records, role: list(records)})


def added(records: Sequence[Record]) -> list[Record]:
    """Copies of the provider's rows to be mixed into an upload: row ids -1, -2, ..."""
    return [replace(record, row_id=-1 - i) for i, record in enumerate(records)]


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """How the trained model must be prompted and read; stored with it, applied by ``evaluate`` and by a server.

    Attributes:
        system_prefix: Put before every request's system message (which is made where there is none).
        completion_prefix: What every completion begins with and a reader must cut off.
    """

    system_prefix: str = ""
    completion_prefix: str = ""

    def prompt(self, record: Record) -> Record:
        """The request as the model must see it."""
        return with_system_prefix(record, self.system_prefix) if self.system_prefix else record

    def completion(self, text: str) -> str:
        """The answer as the user must see it."""
        return text.removeprefix(self.completion_prefix).lstrip() if self.completion_prefix else text


def with_system_prefix(record: Record, prefix: str) -> Record:
    """``prefix`` before the system message, or as one; a text row has it before its prompt, with an empty line."""
    first, *rest = record.messages
    if first.role == "system":
        messages = (Message("system", f"{prefix} {first.content}", first.trained), *rest)
    elif record.template == "chat":
        messages = (Message("system", prefix), first, *rest)
    else:
        messages = (Message(first.role, f"{prefix}\n\n{first.content}", first.trained), *rest)
    return replace(record, messages=messages)
