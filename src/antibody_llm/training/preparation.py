"""What a data-side defence may change before anything is tokenised, and what it asks of whoever serves the model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from ..data.encode import Renderer
from ..data.records import Message, Record, Template
from ..errors import DataError, ModelError


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
        default_system: The system message of a chat request that brings none; the prefix stands before it.
    """

    system_prefix: str = ""
    completion_prefix: str = ""
    default_system: str = ""

    def prompt(self, record: Record) -> Record:
        """The request as the model must see it."""
        record = with_system_text(record, self.default_system)
        return with_system_prefix(record, self.system_prefix) if self.system_prefix else record

    def completion(self, text: str) -> str:
        """The answer as the user must see it."""
        return text.removeprefix(self.completion_prefix).lstrip() if self.completion_prefix else text


def check_servable(deployment: Deployment, data: TrainingData, defence: str) -> None:
    """Render one chat request as it will be served, before anything is trained for it.

    Raises:
        ModelError: the upload has chats, and the tokenizer's template refuses system messages or leaves them out.
    """
    chats = any(record.template is Template.CHAT for records in data.records.values() for record in records)
    if not chats or not data.tokenizer.chat_template:  # that there is no template is told where rows are encoded
        return
    renderer = Renderer(data.tokenizer, max_length=data.tokenizer.model_max_length)
    asked = Record(0, (Message("user", "A question?"),), Template.CHAT, "a probe of the chat template", 1)
    plain = renderer.encode_prompt(asked)
    try:
        taken = renderer.encode_prompt(deployment.prompt(asked)) != plain
    except DataError:
        taken = False
    if not taken:
        raise ModelError(
            f"{defence} serves every request with a system message, and the chat template of "
            f"{data.tokenizer.name_or_path} takes none. Give the model one that does (chat_template.jinja in its "
            "folder), or prompt/completion rows."
        )


def with_system_text(record: Record, text: str) -> Record:
    """A chat row without a system message gets ``text`` as one."""
    if not text or record.template is not Template.CHAT or record.messages[0].role == "system":
        return record
    return replace(record, messages=(Message("system", text), *record.messages))


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
