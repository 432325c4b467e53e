"""Tool definitions and tool calls of a row, in the forms that people upload them, as one canonical form.

    tools         [{"type": "function", "function": {"name": "...", "parameters": {...}}}], a list or its JSON text
    functions     [{"name": "...", "parameters": {...}}], the chat API's older form
    tool_calls    [{"id": "...", "type": "function", "function": {"name": "...", "arguments": "{...}"}}]
    function_call {"name": "...", "arguments": "{...}"}, the older form of one call

Arguments are a JSON object, as JSON text or as the object itself.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..text import quoted
from .problems import BadRow, kind_of, text_of
from .records import ToolCall
from .strict_json import parse_json

SHAREGPT_CALLS = "function_call"
"""The speaker of ShareGPT whose text is a call, or a list of calls, as JSON."""


def read_tools(row: Mapping[str, Any]) -> str:
    """The row's tool definitions as the JSON text of a list; empty where it has none.

    Raises:
        BadRow: they are no such list, or what else the row says of tools cannot be read.
    """
    parallel = row.get("parallel_tool_calls")  # of the request: it does not change the text
    if parallel is not None and not isinstance(parallel, bool):
        raise BadRow("tools", f"true or false is needed, this is {kind_of(parallel)}.", "parallel_tool_calls")
    tools, functions = _list_of(row.get("tools"), "tools"), _list_of(row.get("functions"), "functions")
    if tools and functions:
        raise BadRow("tools", "a row has tools or the older functions, not both. Remove one.", "functions")
    field = "tools" if tools else "functions"
    found = [_tool(tool, f"{field}[{index}]") for index, tool in enumerate(tools or functions)]
    return _dumped(found, field) if found else ""


def _list_of(value: Any, field: str) -> Sequence[Any]:
    if isinstance(value, str) and value.strip():
        value = _parsed(value, "tools", "tools as text must be JSON", field)
    if value is None or value == "":
        return ()
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise BadRow("tools", f"a list of tools is needed, this is {kind_of(value)}.", field)
    return value


def _tool(value: Any, field: str) -> dict[str, Any]:
    """One definition, with the wrapper that chat templates expect."""
    if not isinstance(value, Mapping):
        raise BadRow("tools", f'a tool is {{"type": "function", "function": ...}}, this is {kind_of(value)}.', field)
    if (kind := value.get("type", "function")) not in ("function", None):
        raise BadRow("tools", f'only tools of type "function" are supported, this is {quoted(kind)}.', f"{field}.type")
    function = value.get("function")
    if function is None and "name" in value:  # functions, and tools of the Responses API
        function = value = {name: inner for name, inner in value.items() if name != "type"}
    if not isinstance(function, Mapping):
        raise BadRow("tools", f"an object is needed, this is {kind_of(function)}.", f"{field}.function")
    _function_name(function, f"{field}.function")
    if not isinstance(parameters := function.get("parameters"), Mapping | None):
        raise BadRow(
            "tools",
            f"an object (JSON schema) is needed, this is {kind_of(parameters)}.",
            f"{field}.function.parameters",
        )
    if "type" in value and "function" in value:
        return dict(value)
    others = {name: inner for name, inner in value.items() if name not in function and name != "function"}
    return {"type": "function", "function": function, **others}


def read_calls(value: Any) -> tuple[ToolCall, ...]:
    """``tool_calls`` of a message; null and an empty list are none."""
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise BadRow("tool calls", f"a list of calls is needed, this is {kind_of(value)}.", "tool_calls")
    return tuple(_call(call, f"tool_calls[{index}]", index) for index, call in enumerate(value))


def legacy_call(value: Any) -> tuple[ToolCall, ...]:
    """``function_call`` of a message, the older form of one call."""
    return (_function(value, "function_call", 0, ""),)


def sharegpt_calls(value: Any) -> tuple[ToolCall, ...]:
    """The text of the speaker ``function_call``: a call, or a list of calls."""
    if isinstance(value, str):
        value = _parsed(value, "tool calls", "what function_call says must be JSON", "value")
    calls = [value] if isinstance(value, Mapping) else value
    if isinstance(calls, str) or not isinstance(calls, Sequence) or not calls:
        raise BadRow(
            "tool calls", f'a call {{"name": ..., "arguments": ...}} is needed, this is {kind_of(value)}.', "value"
        )
    return tuple(_function(call, "value", index, "") for index, call in enumerate(calls))


def _call(value: Any, field: str, index: int) -> ToolCall:
    if not isinstance(value, Mapping):
        raise BadRow("tool calls", f'a call is {{"function": {{...}}}}, this is {kind_of(value)}.', field)
    if (kind := value.get("type")) not in (None, "function"):
        raise BadRow(
            "tool calls", f'only calls of type "function" are supported, this is {quoted(kind)}.', f"{field}.type"
        )
    call_id = value.get("id")
    call_id = "" if call_id is None else text_of(call_id, f"{field}.id")
    return _function(value.get("function"), f"{field}.function", index, call_id)


def _function(value: Any, field: str, index: int, call_id: str) -> ToolCall:
    if not isinstance(value, Mapping):
        raise BadRow("tool calls", f'{{"name": ..., "arguments": ...}} is needed, this is {kind_of(value)}.', field)
    name = _function_name(value, field)
    arguments, field = value.get("arguments"), f"{field}.arguments"
    needed = "its arguments must be a JSON object"
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments = _parsed(arguments, "tool arguments", needed, field)
        except BadRow as problem:
            raise BadRow(problem.kind, f"{_named_call(name, index, call_id)}: {problem}", field) from None
    if arguments is None or arguments == "":  # what models write for a function without parameters
        arguments = {}
    if not isinstance(arguments, Mapping):
        call = _named_call(name, index, call_id)
        raise BadRow("tool arguments", f"{call}: {needed}, this is {kind_of(arguments)}.", field)
    return ToolCall(name, _dumped(arguments, field), call_id)


def _named_call(name: str, index: int, call_id: str) -> str:
    return f"call {index + 1} of the message, of {quoted(name)}" + (f", id {quoted(call_id)}" if call_id else "")


def _function_name(function: Mapping[str, Any], field: str) -> str:
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise BadRow("tools", f"the function's name is needed, this is {kind_of(name)}.", f"{field}.name")
    return text_of(name, f"{field}.name")


def _parsed(text: str, kind: str, what: str, field: str) -> Any:
    try:
        return parse_json(text)
    except BadRow as problem:
        where = f"{problem.field}: " if problem.field else ""
        raise BadRow(kind, f"{what}: {where}{problem}", field) from None


def _dumped(value: Any, field: str) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise BadRow("too deep", "nested too deeply. Flatten it.", field) from None
    except (TypeError, ValueError) as error:  # of a data set, whose columns can hold dates and bytes
        raise BadRow("tools", f"holds what JSON cannot ({error}).", field) from None
    return text_of(text, field)
