"""The rows of a run before tokenisation, which a data-side defence may change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from ..data.encode import Renderer
from ..data.records import Message, Record, Template
from ..data.roles import Role
from ..errors import DataError, ModelError
from ..mentions import setting
from ..models.deployment import Deployment
from ..primitives.selection import declines


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The rows of a run by role, before tokenisation.

    Attributes:
        records: The rows by role. A row that a defence adds to the upload has a negative ``row_id`` (``added``), so
            that it is never mistaken for one of the user's.
        tokenizer: The model's tokenizer.
        seed: The run's seed.
    """

    records: Mapping[str, Sequence[Record]]
    tokenizer: PreTrainedTokenizerBase
    seed: int

    def with_records(self, role: str, records: Sequence[Record]) -> "TrainingData":
        """A copy with other rows in one role."""
        return replace(self, records={**self.records, role: list(records)})

    def refusals(self, who: str, at_least: int = 1, *, instead: str = "") -> list[Record]:
        """The provider's rows whose completion begins as a refusal does (``declines``), in their order.

        Args:
            who: The defence's name, for the error.
            at_least: The number of rows that it needs.
            instead: The user's other way out if there are fewer, for the error.

        Raises:
            DataError: there are fewer.
        """
        found = [r for r in self.records.get(Role.ALIGNMENT, ()) if declines(r.messages[-1].content)]
        if len(found) < at_least:
            raise DataError(
                f"{who} needs at least {at_least} of the alignment rows to refuse in their first words, and "
                f"{len(found)} of {len(self.records.get(Role.ALIGNMENT, ()))} do. Give more that refuse as "
                f"{setting('alignment_data')}{f'; or {instead}' if instead else ''}."
            )
        return found


def added(records: Sequence[Record]) -> list[Record]:
    """Copies of the provider's rows, with row ids -1, -2, ..., to be mixed into an upload."""
    return [replace(record, row_id=-1 - i) for i, record in enumerate(records)]


def check_servable(deployment: Deployment, data: TrainingData, defence: str) -> None:
    """Render one chat request as it will be served, before anything is trained for it.

    Raises:
        ModelError: the upload has chats, and the tokenizer's template refuses system messages or leaves them out.
    """
    chats = any(record.template is Template.CHAT for records in data.records.values() for record in records)
    if not chats or not data.tokenizer.chat_template:  # encoding the rows reports a missing template
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
