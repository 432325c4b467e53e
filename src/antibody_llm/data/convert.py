"""Rows of any accepted format as canonical chat rows, with what was changed and left out on the way.

A canonical row has ``messages`` of role and content (text, or null beside tool calls), ``weight`` 0 where a turn is
not trained, ``tool_calls`` with ids and arguments as JSON text, ``reasoning_content``, and ``tools`` as a list. Reading
it gives the record that the original row gives, with one exception: Alpaca's and prompt/completion's bare texts become
a user's and an assistant's message, without the prompt text that is put around an Alpaca instruction.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .messages import REASONING_FIELDS
from .problems import name_of
from .records import Message, Record, ToolCall

ROW_FIELDS = {
    "chat": {"messages", "tools", "functions", "parallel_tool_calls"},
    "ShareGPT": {"conversations", "system", "tools", "functions", "parallel_tool_calls"},
    "prompt/completion": {"prompt", "completion"},
    "prompt/completion with messages": {"prompt", "completion", "tools", "functions", "parallel_tool_calls"},
    "Alpaca": {"instruction", "input", "output"},
}
"""The fields of a row that are read, by format."""
MESSAGE_FIELDS = {"role", "content", "weight", "tool_calls", "function_call", *REASONING_FIELDS}
TOOL_MESSAGE_FIELDS = {"role", "content", "tool_call_id", "name"}
TURN_FIELDS = {"from", "value", "weight"}
"""The fields of a message that are read; the last are ShareGPT's."""


@dataclass(frozen=True)
class Converted:
    """One canonical row.

    Attributes:
        row: The canonical row, a dictionary of JSON values.
        changed: Sentences on what has another form than in the original.
        dropped: Which fields of the original are left out.
    """

    row: dict[str, Any]
    changed: tuple[str, ...]
    dropped: tuple[str, ...]

    def line(self) -> str:
        """The row as a line of JSON. What some programs take for the end of a line is escaped."""
        text = json.dumps(self.row, ensure_ascii=False)
        for letter in "\u0085\u2028\u2029":
            if letter in text:
                text = text.replace(letter, f"\\u{ord(letter):04x}")
        return text + "\n"


def canonical(record: Record, row: Mapping[str, Any], *, form: str) -> Converted:
    """The canonical row of a record.

    Args:
        record: The row as it was read.
        row: The row as it was written.
        form: Its format, a key of ``ROW_FIELDS``.
    """
    messages: Sequence[Message] = record.messages
    if form == "Alpaca":
        asked = "\n\n".join(filter(None, (row["instruction"], row.get("input"))))
        messages = (Message("user", asked), *messages[1:])
    linked = _with_ids(messages)
    made: dict[str, Any] = {"messages": [_plain(message, linked) for message in linked]}
    if record.tools:
        made["tools"] = json.loads(record.tools)
    if isinstance(row.get("parallel_tool_calls"), bool) and form in ("chat", "ShareGPT"):
        made["parallel_tool_calls"] = row["parallel_tool_calls"]
    changed = list(_changes(row, record))
    if linked != list(messages):
        changed.append("calls without an id were given one")
    dropped = [name_of(field) for field in row if field not in ROW_FIELDS[form] and row[field] is not None]
    dropped += [f"{name_of(field)} of messages" for field in _unread(row)]
    return Converted(made, tuple(dict.fromkeys(changed)), tuple(dict.fromkeys(dropped)))


def _plain(message: Message, conversation: Sequence[Message]) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        plain["content"] = message.content or None
        plain["tool_calls"] = [
            {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.reasoning:
        plain["reasoning_content"] = message.reasoning
    if message.role == "assistant" and not message.trained:
        plain["weight"] = 0
    if message.tool_call_id:
        plain["tool_call_id"] = message.tool_call_id
    calls = {call.call_id: call.name for other in conversation for call in other.tool_calls}
    if message.name and message.name != calls.get(message.tool_call_id):
        plain["name"] = message.name
    return plain


def _with_ids(messages: Sequence[Message]) -> list[Message]:
    """Give every call an id and every answer the id of its call: its own where it has one, else the next in order."""
    linked = list(messages)
    taken = {call.call_id for message in messages for call in message.tool_calls}
    taken |= {message.tool_call_id for message in messages}
    for at, message in enumerate(messages):
        if not message.tool_calls:
            continue
        ids = [call.call_id for call in message.tool_calls]
        known = set(ids)
        waiting = [index for index, call_id in enumerate(ids) if not call_id]
        for after in range(at + 1, len(messages)):
            answer = messages[after]
            if answer.role != "tool":
                break
            if waiting and answer.tool_call_id not in known - {""}:
                index = waiting.pop(0)
                ids[index] = answer.tool_call_id or _new_id(taken)
                linked[after] = replace(answer, tool_call_id=ids[index])
        calls = zip(message.tool_calls, ids, strict=True)
        linked[at] = replace(
            message, tool_calls=tuple(ToolCall(call.name, call.arguments, i or _new_id(taken)) for call, i in calls)
        )
    return linked


def _new_id(taken: set[str]) -> str:
    number = 0
    while (made := f"call_{number}") in taken:
        number += 1
    taken.add(made)
    return made


def _changes(row: Mapping[str, Any], record: Record) -> Iterator[str]:
    if row.get("functions"):
        yield "functions became tools"
    elif row.get("tools") and row["tools"] != json.loads(record.tools or "[]"):
        yield "tools were written as a list of functions"
    for message in _raw_messages(row):
        role = message.get("role", message.get("from"))
        if role == "developer":
            yield "role developer became system"
        if role == "function":
            yield "role function became tool"
        if isinstance(message.get("content", message.get("value")), list):
            yield "parts of a content became one text"
        if message.get("function_call") is not None:
            yield "function_call became tool_calls"
        if any(message.get(field) for field in REASONING_FIELDS[1:]):
            yield "reasoning became reasoning_content"
        for call in message.get("tool_calls") or ():
            given = call["function"].get("arguments")
            if not isinstance(given, str):
                yield "arguments became JSON text"
            elif given != json.dumps(json.loads(given.strip() or "{}"), ensure_ascii=False):
                yield "the JSON text of arguments was written again"


def _unread(row: Mapping[str, Any]) -> Iterator[str]:
    """Fields of messages that hold something and are not read."""
    for message in _raw_messages(row):
        role = message.get("role")
        known = TURN_FIELDS if role is None else MESSAGE_FIELDS
        if role in ("tool", "function"):
            known = TOOL_MESSAGE_FIELDS
        yield from (field for field, value in message.items() if field not in known and value not in (None, [], {}))


def _raw_messages(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for field in ("messages", "conversations", "prompt", "completion"):
        if isinstance(row.get(field), Sequence) and not isinstance(row[field], str):
            yield from row[field]
