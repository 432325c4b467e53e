"""One row in any accepted format, from JSON to messages.

    chat               {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    prompt/completion  {"prompt": "...", "completion": "..."}, or both as lists of messages
    Alpaca             {"instruction": "...", "input": "...", "output": "..."}, the input may be missing or empty
    ShareGPT           {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}

Rows of messages may have ``tools``, and their assistant's turns ``tool_calls``; ``tools.py`` reads both. Other fields
of a row are ignored. A row in a format that is known but not accepted is refused by that format's name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .messages import conversation, optional_text, read_messages
from .problems import BadRow, kind_of, name_of, text_of
from .records import Message, Template
from .tools import read_tools
from .unaccepted import other_format

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
"""Source: tatsu-lab/stanford_alpaca, train.py, PROMPT_DICT["prompt_input"]."""


@dataclass(frozen=True, slots=True)
class RowContent:
    """What one row holds, whatever its format."""

    messages: tuple[Message, ...]
    template: Template
    """How the messages become text."""
    tools: str = ""
    """The row's tool definitions as JSON text (``Record.tools``)."""
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
        return RowContent(conversation(read_messages(row["messages"], "messages"), _in_messages), Template.CHAT, tools)
    if form == "ShareGPT":
        return _sharegpt(row, tools)
    if form == "prompt/completion with messages":
        completion = row.get("completion")
        tail = () if completion is None else read_messages(completion, "completion")
        if any(message.role != "assistant" for message in tail[:1]):
            raise BadRow("wrong role", "a completion begins with an assistant message.", "completion[0].role")
        # Messages of the prompt are context: only the completion is trained.
        context = tuple(
            replace(message, trained=False) if message.role == "assistant" else message
            for message in read_messages(row["prompt"], "prompt")
        )

        def place(index: int) -> str:
            return f"prompt[{index}]" if index < len(context) else f"completion[{index - len(context)}]"

        return RowContent(conversation(context + tail, place), Template.CHAT, tools)
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
        content: What the row holds.
        form: The name of its format.
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


def _sharegpt(row: Mapping[str, Any], tools: str) -> RowContent:
    messages = read_messages(row["conversations"], "conversations")
    system = optional_text(row, "system")
    if system and messages[0].role == "system":
        raise BadRow("two systems", "the row has a system text, and so does its first message. Give one.", "system")
    num_added = 1 if system else 0
    if system:
        messages = (Message("system", system), *messages)
    linked = conversation(messages, lambda index: f"conversations[{index - num_added}]")
    return RowContent(linked, Template.CHAT, tools, num_added)


def _in_messages(index: int) -> str:
    return f"messages[{index}]"


def _filled_text(row: Mapping[str, Any], field: str) -> str:
    text = text_of(row[field], field)
    if not text.strip():
        raise BadRow(f"empty {field}", f"the {field} is empty. Fill it, or remove the line.", field)
    return text
