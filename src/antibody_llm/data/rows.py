"""One row in any accepted format, from JSON to messages.

    chat               {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    prompt/completion  {"prompt": "...", "completion": "..."}, or both as lists of messages
    Alpaca             {"instruction": "...", "input": "...", "output": "..."}, the input may be missing or empty
    ShareGPT           {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}

Rows of messages may have ``tools``, and their assistant's turns ``tool_calls``; ``tools.py`` reads both. Other fields
of a row are ignored. A row in a format that is known but not accepted is refused by that format's name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .files import BadRow, kind_of, name_of, quoted, text_of
from .records import Message, Template
from .tools import SHAREGPT_CALLS, legacy_call, read_calls, read_tools, sharegpt_calls
from .unaccepted import other_format

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

ACCEPTED = (
    'chat {"messages": [...]}, prompt/completion {"prompt": ..., "completion": ...}, '
    'Alpaca {"instruction": ..., "input": ..., "output": ...} or ShareGPT {"conversations": [...]}'
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


@dataclass(frozen=True, slots=True)
class RowContent:
    """What one row holds, whatever its format."""

    messages: tuple[Message, ...]
    template: Template
    """How they become text."""
    tools: str = ""
    """As in ``Record``."""
    num_added: int = 0
    """How many of the messages in front come from other fields than the list of messages."""


def row_format(row: Any) -> str:
    """The name of the row's format. Raises ``BadRow`` where it is none of the accepted ones."""
    if not isinstance(row, Mapping):
        if (
            isinstance(row, Sequence)
            and row
            and isinstance(row[0], Mapping)
            and not {"role", "from"}.isdisjoint(row[0])
        ):
            raise BadRow(
                "bare messages",
                'a bare list of messages. A row is a JSON object: write {"messages": [...]} around the list.',
            )
        raise BadRow("not an object", f"a row is a JSON object, this is {kind_of(row)}. Accepted: {ACCEPTED}.")
    if "messages" in row:
        return "chat"
    if "prompt" in row:
        return "prompt/completion" if isinstance(row["prompt"], str) else "prompt/completion with messages"
    if "instruction" in row:
        return "Alpaca"
    if "conversations" in row:
        return "ShareGPT"
    if (problem := other_format(row)) is not None:
        raise problem
    names = sorted(map(name_of, row))
    fields = ", ".join(names[:NUM_FIELDS_SHOWN]) + (", ..." if len(names) > NUM_FIELDS_SHOWN else "")
    raise BadRow("unknown fields", f"no accepted format (fields seen: {fields or 'none'}). Accepted: {ACCEPTED}.")


def row_content(row: Mapping[str, Any], *, form: str) -> RowContent:
    """The row's messages, tools and how they become text. A completion that is missing is simply not there."""
    content = _read(row, form)
    first = content.messages[0].role
    if first == "assistant":
        raise BadRow("starts with assistant", "the first message is from 'assistant', which answers nothing.")
    return content


def _read(row: Mapping[str, Any], form: str) -> RowContent:
    tools = read_tools(row) if "tools" in row or "functions" in row or "parallel_tool_calls" in row else ""
    if form == "chat":
        return RowContent(_conversation(_messages(row["messages"], "messages"), _in_messages), Template.CHAT, tools)
    if form == "ShareGPT":
        return _sharegpt(row, tools)
    if form == "prompt/completion with messages":
        completion = row.get("completion")
        tail = () if completion is None else _messages(completion, "completion")
        if any(message.role != "assistant" for message in tail[:1]):
            raise BadRow("wrong role", "a completion begins with an assistant message.", "completion[0].role")
        # Messages of the prompt are context: only the completion is trained.
        context = tuple(
            replace(message, trained=False) if message.role == "assistant" else message
            for message in _messages(row["prompt"], "prompt")
        )

        def place(index: int) -> str:
            return f"prompt[{index}]" if index < len(context) else f"completion[{index - len(context)}]"

        return RowContent(_conversation(context + tail, place), Template.CHAT, tools)
    if tools:
        raise BadRow("tools", f"tools need messages, and this is {form} text. Give a chat row.", "tools")
    if form == "Alpaca":
        prompt, completion_field = _alpaca_prompt(row), "output"
    else:
        prompt, completion_field = _filled_text(row, "prompt"), "completion"
    messages: tuple[Message, ...] = (Message("user", prompt),)
    if row.get(completion_field) is not None:
        messages += (Message("assistant", text_of(row[completion_field], completion_field)),)
    return RowContent(messages, Template.TEXT)


def check_trainable(content: RowContent, *, form: str, row: Mapping[str, Any]) -> None:
    """Raises ``BadRow`` unless the row ends with an assistant's completion and trains one; none may be empty.

    Args:
        content: Of the row.
        form: Its format.
        row: The row itself, whose other fields may say which format it has in truth.
    """
    messages, field = content.messages, _completion_field(form)
    last = len(messages) - 1
    if messages[last].role != "assistant" and (problem := other_format(row)) is not None:
        raise problem
    if not any(message.role == "assistant" for message in messages):
        if form in MESSAGE_FORMATS:
            raise BadRow("no assistant", "no assistant message. Append the completion, or remove the line.", field)
        raise BadRow("no completion", f"no {field}. Add the field, or remove the line.", field)
    if messages[last].role != "assistant":
        raise BadRow(
            "last not assistant",
            f"the last message is from '{messages[last].role}'; a training record ends with the assistant's "
            "completion. Append one, or remove the line.",
            f"conversations[{last - content.num_added}].from" if form == "ShareGPT" else f"messages[{last}].role",
        )
    num_trained = 0
    for index, message in enumerate(messages):
        if message.role != "assistant" or not message.trained:
            continue
        num_trained += 1
        if not message.tool_calls and not message.content.strip():
            at = index - content.num_added
            where = {"chat": f"messages[{at}].content", "ShareGPT": f"conversations[{at}].value"}.get(form, field)
            raise BadRow("empty completion", "the completion is empty. Fill it, or remove the line.", where)
    if not num_trained:
        raise BadRow(
            "nothing trained", "every assistant message has weight 0. Give one weight 1, or remove the line.", field
        )


MESSAGE_FORMATS = {"chat": "messages", "ShareGPT": "conversations"}
"""Formats whose rows are one list of messages, and the field that holds it."""
NUM_FIELDS_SHOWN = 12


def _completion_field(form: str) -> str:
    return MESSAGE_FORMATS.get(form) or {"Alpaca": "output"}.get(form, "completion")


def _alpaca_prompt(row: Mapping[str, Any]) -> str:
    instruction = _filled_text(row, "instruction")
    given = row.get("input")
    if given is None or given == "":
        return ALPACA_PROMPT.format(instruction=instruction)
    return ALPACA_PROMPT_WITH_INPUT.format(instruction=instruction, input=text_of(given, "input"))


# -- messages ----------------------------------------------------------------------------------------------------


def _messages(value: Any, field: str) -> tuple[Message, ...]:
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
        tool_call_id=_optional_text(value, "tool_call_id") if role == "tool" else "",
        name=_optional_text(value, "name") if role == "tool" else "",
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


def _optional_text(value: Mapping[str, Any], field: str) -> str:
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


def _sharegpt(row: Mapping[str, Any], tools: str) -> RowContent:
    messages = _messages(row["conversations"], "conversations")
    system = _optional_text(row, "system")
    if system and messages[0].role == "system":
        raise BadRow("two systems", "the row has a system text, and so does its first message. Give one.", "system")
    num_added = 1 if system else 0
    if system:
        messages = (Message("system", system), *messages)
    linked = _conversation(messages, lambda index: f"conversations[{index - num_added}]")
    return RowContent(linked, Template.CHAT, tools, num_added)


def _in_messages(index: int) -> str:
    return f"messages[{index}]"


def _conversation(messages: tuple[Message, ...], place: Callable[[int], str]) -> tuple[Message, ...]:
    """The messages, each tool's answer with the name of the function that it answers.

    Args:
        messages: All of the row.
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
                ids = ", ".join(map(quoted, list(names)[:NUM_FIELDS_SHOWN])) or "none"
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


def _filled_text(row: Mapping[str, Any], field: str) -> str:
    text = text_of(row[field], field)
    if not text.strip():
        raise BadRow(f"empty {field}", f"the {field} is empty. Fill it, or remove the line.", field)
    return text
