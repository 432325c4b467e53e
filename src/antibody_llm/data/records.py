"""One row of training data, as uploaded and as tokens.

A row keeps the place it came from: ``row_id`` is its position in the file or data set (0-based), before anything was
skipped, filtered or shuffled, so that every weight can be reported with the row of the upload.
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
class ToolCall:
    """One call of a tool that an assistant's turn makes."""

    name: str
    """The function's name."""
    arguments: str
    """The JSON object of its arguments, as JSON text: ``json.dumps(object, ensure_ascii=False)``."""
    call_id: str = ""
    """What the tool's answer refers to; empty where the row gives none."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: str
    """``system``, ``user``, ``assistant`` or ``tool``."""
    content: str
    """Its text; empty for an assistant's turn that only calls tools."""
    trained: bool = True
    """False for an assistant's turn of weight 0; it has no meaning for other roles."""
    reasoning: str = ""
    """An assistant's thinking (``reasoning_content``), which the chat template puts where the model's family does."""
    tool_calls: tuple[ToolCall, ...] = ()
    """The tools that an assistant's turn calls."""
    tool_call_id: str = ""
    """The call that a tool's answer answers."""
    name: str = ""
    """The function whose answer a tool's message is. The chat API's ``name`` of other roles is not kept."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row as uploaded. With ``Template.TEXT`` it is exactly (user = prompt, assistant = completion)."""

    row_id: int
    messages: tuple[Message, ...]
    template: Template
    source: str
    line: int
    tools: str = ""
    """The row's tool definitions, a JSON list as JSON text; empty where it has none."""

    @property
    def where(self) -> str:
        """File and line, for error messages."""
        return f"{self.source}, line {self.line}"


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """One row as tokens.

    Attributes:
        row_id: The position of the row in the upload (``Record.row_id``).
        input_ids: The whole conversation.
        spans: ``[start, end)`` of each trained completion, its end-of-sequence token included; never empty, start >= 1.
            Everything before ``start`` is that completion's prompt.
        template: How it was rendered; a refusal to the same prompt must be rendered in the same way.
    """

    row_id: int
    input_ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    template: Template

    def parts(self) -> tuple[list[int], list[int]]:
        """(prompt, completion): the tokens that are not trained, and those that are."""
        trained = {t for start, end in self.spans for t in range(start, end)}
        prompt = [token for t, token in enumerate(self.input_ids) if t not in trained]
        return prompt, [token for t, token in enumerate(self.input_ids) if t in trained]
