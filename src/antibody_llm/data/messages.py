"""Messages of a row, from JSON: of a chat, or of ShareGPT, with calls of tools and the answers to them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..text import quoted
from .problems import BadRow, kind_of, text_of
from .records import Message
from .tools import SHAREGPT_CALLS, legacy_call, read_calls, sharegpt_calls

NUM_IDS_SHOWN = 12


ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
"""Accepted roles, and what they are called here. ``developer`` is what OpenAI now calls ``system``, ``function`` what
it once called ``tool``."""
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    SHAREGPT_CALLS: "assistant",
    "observation": "tool",
    "tool": "tool",
}
"""Speakers of ShareGPT, and what they are called here."""
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Where an assistant's message may have its thinking; one of them at a time."""


def read_messages(value: Any, field: str) -> tuple[Message, ...]:
    """The messages of a list.

    Args:
        value: What the row holds in ``field``.
        field: The name of the list; ``conversations`` is ShareGPT's.

    Raises:
        BadRow: the list or one of its messages cannot be used; names the place in the row.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise BadRow("not messages", f"a list of messages is needed, this is {kind_of(value)}.", field)
    if not value:
        raise BadRow("no messages", "the list of messages is empty. Fill it, or remove the line.", field)
    read = _turn if field == "conversations" else _message
    messages = []
    for index, message in enumerate(value):
        try:
            messages.append(read(message))
        except BadRow as problem:
            problem.field = f"{field}[{index}]" + (f".{problem.field}" if problem.field else "")
            raise
    return tuple(messages)


def _message(value: Any) -> Message:
    if not isinstance(value, Mapping):
        raise BadRow("not a message", f'a message is {{"role": ..., "content": ...}}, this is {kind_of(value)}.')
    given = value.get("role")
    role = ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        raise BadRow("unknown role", f"unknown role {quoted(given)}. Roles: {', '.join(ROLES)}.", "role")
    if len(value) == 2 and type(content := value.get("content")) is str:  # nearly all messages of nearly all uploads
        return Message(role, text_of(content, "content"))
    return _full_message(value, role)


def _full_message(value: Mapping[str, Any], role: str) -> Message:
    """A message with more than role and content. A data set's columns hold null where a message gave nothing."""
    trained = _trained(value.get("weight"), role)
    calls = read_calls(value.get("tool_calls"))
    if (legacy := value.get("function_call")) is not None:
        if calls:
            raise BadRow("tools", "a message has tool_calls or the older function_call, not both.", "function_call")
        calls = legacy_call(legacy)
    if calls and role != "assistant":
        raise BadRow("tools", f"only an assistant message calls tools, this is from '{role}'.", "tool_calls")
    content = value.get("content")
    if content is None and role == "assistant" and (calls or _says_why_empty(value)):
        content = ""
    return Message(
        role,
        _content(content, "content"),
        trained,
        reasoning=_reasoning(value, role),
        tool_calls=calls,
        tool_call_id=optional_text(value, "tool_call_id") if role == "tool" else "",
        name=optional_text(value, "name") if role == "tool" else "",
    )


def _says_why_empty(value: Mapping[str, Any]) -> bool:
    """Raises ``BadRow`` where an answer without content has it in a field that is not trained; else False."""
    for field, advice in (("refusal", "Move its text into content"), ("audio", "Only text can be trained: remove it")):
        if value.get(field) is not None:
            raise BadRow("no content", f"content is null, and {field} is not trained. {advice}.", field)
    return False


def _trained(weight: Any, role: str) -> bool:
    if weight is None:
        return True
    if role != "assistant":
        raise BadRow("weight", f"only an assistant message has a weight, this is from '{role}'.", "weight")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or weight not in (0, 1):
        raise BadRow("weight", f"weight is {quoted(weight)}; it is 0 (context only) or 1 (trained).", "weight")
    return weight == 1


def _reasoning(value: Mapping[str, Any], role: str) -> str:
    thought = ""
    for field in REASONING_FIELDS:
        if (given := value.get(field)) in (None, ""):
            continue
        text = _content(given, field)
        if role != "assistant":
            raise BadRow("reasoning", f"only an assistant message has reasoning, this is from '{role}'.", field)
        if thought and text != thought:
            raise BadRow("reasoning", f"{field} differs from the message's other reasoning. Give one.", field)
        thought = text
    return thought


def optional_text(value: Mapping[str, Any], field: str) -> str:
    """The text of a field; empty where it is absent or null."""
    given = value.get(field)
    return "" if given is None else text_of(given, field)


def _turn(value: Any) -> Message:
    """A message of ShareGPT. Some data sets give the same list the field names of a chat."""
    if isinstance(value, Mapping) and "from" not in value and "role" in value:
        return _message(value)
    if not isinstance(value, Mapping):
        raise BadRow("not a message", f'a message is {{"from": ..., "value": ...}}, this is {kind_of(value)}.')
    given = value.get("from")
    role = SHAREGPT_ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        raise BadRow("unknown role", f"unknown speaker {quoted(given)}. Speakers: {', '.join(SHAREGPT_ROLES)}.", "from")
    trained = _trained(value.get("weight"), role)
    if given == SHAREGPT_CALLS:
        return Message(role, "", trained, tool_calls=sharegpt_calls(value.get("value")))
    return Message(role, _content(value.get("value"), "value"), trained)


def conversation(messages: tuple[Message, ...], place: Callable[[int], str]) -> tuple[Message, ...]:
    """The messages, each tool's answer with the name of the function that it answers.

    Args:
        messages: All messages of the row.
        place: Where in the row a message is.

    Raises:
        BadRow: an answer to no call.
    """
    if not any(message.role == "tool" for message in messages):
        return messages
    linked: list[Message] = []
    names: dict[str, str] = {}
    waiting: list[str] = []
    anonymous = spoken = False
    for index, message in enumerate(messages):
        if message.role == "assistant":
            spoken = True
            names |= {call.call_id: call.name for call in message.tool_calls if call.call_id}
            anonymous = anonymous or not all(call.call_id for call in message.tool_calls)
            waiting = [call.name for call in message.tool_calls]
        elif message.role == "tool":
            if not spoken:
                raise BadRow(
                    "answers no call",
                    "a tool's answer before any assistant message. Put the call that it answers in front of it.",
                    place(index),
                )
            call_id = message.tool_call_id
            if call_id and call_id not in names and not anonymous:
                ids = ", ".join(map(quoted, list(names)[:NUM_IDS_SHOWN])) or "none"
                raise BadRow(
                    "answers no call",
                    f"tool_call_id {quoted(call_id)} is no call of an earlier assistant message (ids: {ids}).",
                    f"{place(index)}.tool_call_id",
                )
            in_order = waiting.pop(0) if waiting else ""
            message = replace(message, name=message.name or names.get(call_id, "" if call_id in names else in_order))
        linked.append(message)
    return tuple(linked)


def _content(value: Any, field: str) -> str:
    """A message's text: a string, or OpenAI's list of parts, all of them text."""
    if not isinstance(value, list):
        return text_of(value, field)
    for index, part in enumerate(value):
        if not isinstance(part, Mapping) or part.get("type") != "text":
            raise BadRow("not text", 'only parts of type "text" are supported. Remove it.', f"{field}[{index}]")
    return "".join(text_of(part.get("text"), f"{field}[{index}].text") for index, part in enumerate(value))
