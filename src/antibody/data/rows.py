"""One row in any accepted format, from JSON to messages.

    chat               {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    prompt/completion  {"prompt": "...", "completion": "..."}, or both as lists of messages
    Alpaca             {"instruction": "...", "input": "...", "output": "..."}, the input may be missing or empty

Other fields of a row are left alone, except those that would change what the model reads (``tools``).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from .files import BadRow
from .records import Message, Template

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Accepted roles, and what they are called here. ``developer`` is what OpenAI now calls ``system``."""

ACCEPTED = (
    'chat {"messages": [...]}, prompt/completion {"prompt": ..., "completion": ...} '
    'or Alpaca {"instruction": ..., "input": ..., "output": ...}'
)

ALPACA_PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
"""Source: tatsu-lab/stanford_alpaca, train.py, PROMPT_DICT["prompt_no_input"]."""

ALPACA_PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
"""Source: as above, PROMPT_DICT["prompt_input"]."""


def row_format(row: Any) -> str:
    """The name of the row's format. Raises ``BadRow`` where it is none of the accepted ones."""
    if not isinstance(row, Mapping):
        raise BadRow("not an object", f"a row is a JSON object, this is {_kind(row)}. Accepted: {ACCEPTED}.")
    if "messages" in row:
        return "chat"
    if "prompt" in row:
        return "prompt/completion" if isinstance(row["prompt"], str) else "prompt/completion with messages"
    if "instruction" in row:
        return "Alpaca"
    fields = ", ".join(sorted(str(field) for field in row)) or "none"
    raise BadRow("unknown fields", f"no accepted format (fields seen: {fields}). Accepted: {ACCEPTED}.")


def row_messages(row: Mapping[str, Any], *, form: str) -> tuple[tuple[Message, ...], Template]:
    """The row's messages and how they become text. A completion that is missing is simply not there."""
    messages, template = _read(row, form)
    if messages[0].role == "assistant":
        raise BadRow("starts with assistant", "the first message is from 'assistant', which answers nothing.")
    return messages, template


def _read(row: Mapping[str, Any], form: str) -> tuple[tuple[Message, ...], Template]:
    for field in ("tools", "functions"):
        if row.get(field):
            raise BadRow("tools", "tool definitions are not supported. Remove the field.", field)
    if form == "chat":
        return _messages(row["messages"], "messages"), Template.CHAT
    if form == "prompt/completion with messages":
        completion = row.get("completion")
        tail = () if completion is None else _messages(completion, "completion")
        if any(message.role != "assistant" for message in tail[:1]):
            raise BadRow("wrong role", "a completion begins with an assistant message.", "completion[0].role")
        # What stands in the prompt is context: only the completion is trained.
        context = _messages(row["prompt"], "prompt")
        return tuple(Message(m.role, m.content, m.role != "assistant") for m in context) + tail, Template.CHAT
    if form == "Alpaca":
        prompt, completion_field = _alpaca_prompt(row), "output"
    else:
        prompt, completion_field = _filled_text(row, "prompt"), "completion"
    messages: tuple[Message, ...] = (Message("user", prompt),)
    if row.get(completion_field) is not None:
        messages += (Message("assistant", _text(row[completion_field], completion_field)),)
    return messages, Template.TEXT


def check_trainable(messages: Sequence[Message], *, form: str) -> None:
    """Raises ``BadRow`` unless the row ends with an assistant's completion and trains one; none may be empty."""
    name, last = _completion_field(form), len(messages) - 1
    if not any(message.role == "assistant" for message in messages):
        if form == "chat":
            raise BadRow("no assistant", "no assistant message. Append the completion, or remove the line.", "messages")
        raise BadRow("no completion", f"no {name}. Add the field, or remove the line.", name)
    if messages[last].role != "assistant":
        raise BadRow(
            "last not assistant",
            f"the last message is from '{messages[last].role}'; a training record ends with the assistant's "
            "completion. Append one, or remove the line.",
            f"messages[{last}].role",
        )
    trained = [index for index, message in enumerate(messages) if message.role == "assistant" and message.trained]
    if not trained:
        raise BadRow(
            "nothing trained", "every assistant message has weight 0. Give one weight 1, or remove the line.", name
        )
    for index in trained:
        if not messages[index].content.strip():
            where = f"messages[{index}].content" if form == "chat" else name
            raise BadRow("empty completion", "the completion is empty. Fill it, or remove the line.", where)


def _completion_field(form: str) -> str:
    return {"chat": "messages", "Alpaca": "output"}.get(form, "completion")


def _alpaca_prompt(row: Mapping[str, Any]) -> str:
    instruction = _filled_text(row, "instruction")
    if row.get("input"):
        return ALPACA_PROMPT_WITH_INPUT.format(instruction=instruction, input=_text(row["input"], "input"))
    return ALPACA_PROMPT.format(instruction=instruction)


def _messages(value: Any, field: str) -> tuple[Message, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise BadRow("not messages", f"a list of messages is needed, this is {_kind(value)}.", field)
    if not value:
        raise BadRow("no messages", "the list of messages is empty. Fill it, or remove the line.", field)
    return tuple(_message(message, f"{field}[{index}]") for index, message in enumerate(value))


def _message(value: Any, field: str) -> Message:
    if not isinstance(value, Mapping):
        raise BadRow("not a message", f'a message is {{"role": ..., "content": ...}}, this is {_kind(value)}.', field)
    role = value.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise BadRow("unknown role", f"unknown role {role!r}. Roles: {', '.join(ROLES)}.", f"{field}.role")
    if value.get("tool_calls") or value.get("function_call"):
        raise BadRow("tools", "tool calls are not supported. Remove the field or the line.", field)
    weight = value.get("weight")  # a data set's columns hold null where a message gave none
    if weight is None:
        return Message(ROLES[role], _content(value.get("content"), f"{field}.content"))
    if role != "assistant":
        raise BadRow("weight", f"only an assistant message has a weight, this is from {role!r}.", f"{field}.weight")
    if isinstance(weight, bool) or weight not in (0, 1):
        raise BadRow("weight", f"weight is {weight!r}; it is 0 (context only) or 1 (trained).", f"{field}.weight")
    return Message(ROLES[role], _content(value.get("content"), f"{field}.content"), trained=weight == 1)


def _content(value: Any, field: str) -> str:
    """A message's text: a string, or OpenAI's list of parts, all of them text."""
    if not isinstance(value, list):
        return _text(value, field)
    for index, part in enumerate(value):
        if not isinstance(part, Mapping) or part.get("type") != "text":
            raise BadRow("not text", 'only parts of type "text" are supported. Remove it.', f"{field}[{index}]")
    return "".join(_text(part.get("text"), f"{field}[{index}].text") for index, part in enumerate(value))


def _filled_text(row: Mapping[str, Any], field: str) -> str:
    text = _text(row[field], field)
    if not text.strip():
        raise BadRow(f"empty {field}", f"the {field} is empty. Fill it, or remove the line.", field)
    return text


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise BadRow("not text", f"text is needed, this is {_kind(value)}.", field)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can escape half of a surrogate pair; a tokenizer cannot encode it.
        raise BadRow("lone surrogate", f"half a surrogate pair at character {error.start}. Remove it.", field) from None
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
