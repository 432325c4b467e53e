"""How a trained model must be prompted and read by whoever serves it."""

from dataclasses import dataclass, replace

from ..data.records import Message, Record, Template


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """How the trained model must be prompted and read; stored with it, applied by ``evaluate`` and by a server.

    Attributes:
        system_prefix: Text before every request's system message (which is made where there is none).
        completion_prefix: What every completion begins with and a reader must cut off.
        default_system: The system message of a chat request that brings none; the prefix comes before it.
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


def with_system_text(record: Record, text: str) -> Record:
    """Messages with ``text`` as the system message of a chat that has none."""
    if not text or record.template is not Template.CHAT or record.messages[0].role == "system":
        return record
    return replace(record, messages=(Message("system", text), *record.messages))


def with_system_prefix(record: Record, prefix: str) -> Record:
    """Messages with ``prefix`` before the system message, or as one; in a text row, before the prompt."""
    first, *rest = record.messages
    if first.role == "system":
        messages = (Message("system", f"{prefix} {first.content}", first.trained), *rest)
    elif record.template == "chat":
        messages = (Message("system", prefix), first, *rest)
    else:
        messages = (Message(first.role, f"{prefix}\n\n{first.content}", first.trained), *rest)
    return replace(record, messages=messages)
