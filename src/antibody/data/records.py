"""One row of training data, as uploaded and as tokens.

A row keeps the place it came from: ``row_id`` is its position in the file or data set (0-based), before anything was
skipped, filtered or shuffled, so that every weight can be told to the row of the upload.
"""

from dataclasses import dataclass
from enum import StrEnum


class Template(StrEnum):
    """How a row's messages become text."""

    CHAT = "chat"
    """The tokenizer's chat template."""
    TEXT = "text"
    """Prompt and completion as they are, end-of-sequence token appended. No template."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation. ``trained`` is False for an assistant turn of weight 0."""

    role: str
    content: str
    trained: bool = True


@dataclass(frozen=True, slots=True)
class Record:
    """One row as uploaded. With ``Template.TEXT`` it is exactly (user = prompt, assistant = completion)."""

    row_id: int
    messages: tuple[Message, ...]
    template: Template
    source: str
    line: int

    @property
    def where(self) -> str:
        """File and line, for error messages."""
        return f"{self.source}, line {self.line}"


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """One row as tokens.

    Attributes:
        row_id: As in ``Record``.
        input_ids: The whole conversation.
        spans: ``[start, end)`` of each trained completion, its end-of-sequence token included; never empty, start >= 1.
            What stands before ``start`` is that completion's prompt.
        template: How it was rendered; a refusal to the same prompt must be rendered alike.
    """

    row_id: int
    input_ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    template: Template
