"""Calls of tools in what a model has written, in the forms that chat templates write them.

    <tool_call>{"name": "...", "arguments": {...}}</tool_call>      Qwen, Hermes; any number of them
    [{"name": "...", "arguments": {...}}]                           Mistral, whose mark before it is a special token
    {"name": "...", "parameters": {...}}                            Llama 3

A text is a call only if the whole of it, but for tags, is in one of these forms and names an offered function.
"""

import json
import re
from collections.abc import Collection
from typing import Any

from ...data.records import ToolCall

_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", re.DOTALL)


def tool_calls(text: str, offered: Collection[str]) -> tuple[str, tuple[ToolCall, ...]]:
    """The text without its calls, and the calls; a text without any comes back as it is.

    Args:
        text: What the model has written.
        offered: Names of functions that it may call.
    """
    if not offered:
        return text, ()
    tagged = _TAGGED.findall(text)
    found: list[ToolCall] = []
    for piece in tagged or [text.strip()]:
        calls = _calls(piece, offered)
        if not calls:
            return text, ()
        found += calls
    return (_TAGGED.sub("", text).strip() if tagged else ""), tuple(found)


def _calls(text: str, offered: Collection[str]) -> list[ToolCall]:
    """The calls that a JSON text holds; none where one of them is no call."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return []
    calls = []
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, dict) or entry.get("name") not in offered:
            return []
        arguments = entry.get("arguments", entry.get("parameters", {}))
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                return []
        if not isinstance(arguments, dict):
            return []
        calls.append(ToolCall(entry["name"], json.dumps(arguments, ensure_ascii=False), str(entry.get("id", ""))))
    return calls
