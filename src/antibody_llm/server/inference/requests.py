"""What a client asks for: chat completions, completions and responses, as one kind of request.

A field that is not supported is refused with its name unless it holds the value that changes nothing: whoever sets it
expects an effect. Messages and tools are read as those of an upload are (data/rows.py), so that a model is asked with
what it was trained on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...data.problems import BadRow, kind_of
from ...data.records import Message, Record, Template
from ...data.rows import row_content
from ...parsing import nearest
from ...text import quoted

MOST_CHOICES = 16
"""Completions of one request."""
MOST_STOPS = 4


class RequestError(Exception):
    """What the client can fix; answered with status 400.

    Args:
        message: What is wrong and how to fix it.
        param: The field.
        code: The error object's code.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.code = param, code

    def to_json(self) -> dict[str, Any]:
        """The API's error object."""
        error = {"message": str(self), "type": "invalid_request_error", "param": self.param, "code": self.code}
        return {"error": error}


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One request, whatever its form."""

    records: tuple[Record, ...]
    """A prompt each; several only of completions."""
    num_choices: int = 1
    """Completions of each prompt."""
    max_tokens: int | None = None
    """None: as many as the context has room for."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that have this share of the probability together."""
    seed: int | None = None
    """None: another draw every time."""
    stop: tuple[str, ...] = ()
    """Texts before which a completion ends."""
    stream: bool = False
    include_usage: bool = False
    """Whether a stream ends with the counts."""
    tools: tuple[str, ...] = ()
    """Names of the functions that the model may call."""


_SAMPLING = ("temperature", "top_p", "seed", "stream", "model")
_IGNORED = (
    *("user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "store"),
    "parallel_tool_calls",
)
"""Fields that do not change what is generated."""
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": (),
    "verbosity": (),
    "prediction": (),
    "audio": (),
    "web_search_options": (),
    "function_call": ("auto", "none"),
    "moderation": (),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "previous_response_id": (),
    "conversation": (),
    "prompt": (),
    "include": ([],),
    "reasoning": (),
    "text": ({"format": {"type": "text"}}, {}),
    "truncation": ("disabled",),
    "background": (False,),
    "max_tool_calls": (),
    "stream_options": ({}, {"include_obfuscation": False}, {"include_obfuscation": True}),
    "context_management": (),
    "prompt_cache_options": (),
}
"""Fields that are not supported, with the values beside null that ask for nothing."""


def parse_chat(body: Mapping[str, Any]) -> Generation:
    """A body of ``POST /chat/completions``.

    Raises:
        RequestError: it asks for what cannot be had.
    """
    fields = _Fields(body)
    fields.know(
        *("messages", "tools", "functions", "tool_choice", "n", "stop", "max_tokens", "max_completion_tokens"),
        "stream_options",
    )
    limit = fields.one_of("max_completion_tokens", "max_tokens")
    return Generation(
        records=(_conversation(body, fields),),
        num_choices=fields.whole("n", 1, low=1, high=MOST_CHOICES),
        max_tokens=fields.optional_whole(limit, low=1),
        stop=fields.stops(),
        include_usage=fields.include_usage(),
        tools=fields.tool_names(),
        **fields.sampling(),
    )


def parse_completion(body: Mapping[str, Any]) -> Generation:
    """A body of ``POST /completions``.

    Raises:
        RequestError: it asks for what cannot be had.
    """
    fields = _Fields(body)
    fields.know("prompt", "n", "stop", "max_tokens", "stream_options")
    prompt = body.get("prompt")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not prompts or not all(isinstance(one, str) and one for one in prompts):
        raise RequestError("A text, or a list of texts, is needed; tokens are not taken, nor empty texts.", "prompt")
    num_choices = fields.whole("n", 1, low=1, high=MOST_CHOICES)
    if num_choices * len(prompts) > MOST_CHOICES:
        raise RequestError(f"A request has at most {MOST_CHOICES} completions, n for each prompt. Send several.", "n")
    return Generation(
        records=tuple(
            Record(row, (Message("user", text),), Template.TEXT, "prompt", row + 1) for row, text in enumerate(prompts)
        ),
        num_choices=num_choices,
        max_tokens=fields.whole("max_tokens", 16, low=1),
        stop=fields.stops(),
        include_usage=fields.include_usage(),
        **fields.sampling(),
    )


def parse_response(body: Mapping[str, Any]) -> Generation:
    """A body of ``POST /responses``.

    Raises:
        RequestError: it asks for what cannot be had.
    """
    fields = _Fields(body)
    fields.know("input", "instructions", "max_output_tokens", "tools", "tool_choice")
    given, instructions = body.get("input"), body.get("instructions")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(items, list) or not items:
        raise RequestError("A text, or a list of messages, is needed.", "input")
    messages = [_response_item(item, f"input[{index}]") for index, item in enumerate(items)]
    if instructions is not None:
        messages = [{"role": "system", "content": instructions}, *messages]
    chat = {"messages": messages} | {name: body[name] for name in ("tools",) if body.get(name)}
    return Generation(
        records=(_conversation(chat, fields),),
        max_tokens=fields.optional_whole("max_output_tokens", low=1),
        tools=fields.tool_names(),
        **fields.sampling(),
    )


def _conversation(chat: Mapping[str, Any], fields: "_Fields") -> Record:
    if "messages" not in chat:
        raise RequestError("A list of messages is needed.", "messages")
    taken = {name: chat[name] for name in ("messages", "tools", "functions") if chat.get(name) is not None}
    if fields.tool_choice() == "none":
        taken = {"messages": chat["messages"]}
    try:
        content = row_content(taken, form="chat")
    except BadRow as problem:
        raise RequestError(f"{str(problem)[:1].upper()}{str(problem)[1:]}", problem.field or "messages") from None
    last = content.messages[-1].role
    if last == "assistant":
        at = f"messages[{len(content.messages) - 1}]"
        raise RequestError("The last message is from the assistant: end with what it is to answer.", at)
    return Record(0, content.messages, content.template, "messages", 1, content.tools)


def _response_item(item: Any, field: str) -> dict[str, Any]:
    """A message of the chat API from an item of ``input``."""
    if not isinstance(item, Mapping):
        raise RequestError(f"A message is needed, this is {kind_of(item)}.", field)
    kind = item.get("type", "message")
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if kind == "function_call_output":
        return {"role": "tool", "content": item.get("output"), "tool_call_id": item.get("call_id")}
    if kind != "message":
        raise RequestError(f"Items of type {quoted(kind)} are not supported; messages and calls are.", f"{field}.type")
    content = item.get("content")
    if isinstance(content, list):
        parts = []
        for index, part in enumerate(content):
            if not isinstance(part, Mapping) or part.get("type") not in ("input_text", "output_text", "text"):
                raise RequestError("Only parts of text are supported. Remove it.", f"{field}.content[{index}]")
            parts.append({"type": "text", "text": part.get("text")})
        content = parts
    return {"role": item.get("role"), "content": content}


class _Fields:
    """The fields of one body, checked one by one."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self.body = body

    def know(self, *names: str) -> None:
        """Refuse every field that is set, and neither named nor without effect."""
        known = {*names, *_SAMPLING, *_IGNORED}
        for name, value in self.body.items():
            if name in known or value is None:
                continue
            if name not in _NEUTRAL:
                hint = nearest(str(name)[:200], sorted(known))
                raise RequestError(f"{quoted(name)} is no field of this request{hint}", str(name)[:200])
            if not any(value == one and isinstance(value, bool) is isinstance(one, bool) for one in _NEUTRAL[name]):
                raise RequestError(f"{name} is not supported here. Leave it out.", name, "unsupported_parameter")

    def sampling(self) -> dict[str, Any]:
        """What all three requests share."""
        return {
            "temperature": self.number("temperature", 1.0, low=0, high=2),
            "top_p": self.number("top_p", 1.0, low=0, high=1),
            "seed": self.optional_whole("seed", low=-(2**63)),
            "stream": self.flag("stream"),
        }

    def number(self, name: str, default: float, *, low: float, high: float) -> float:
        """A number between two others."""
        value = self.body.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise RequestError(f"{name} is {quoted(value)}: a number from {low} to {high} is needed.", name)
        return float(value)

    def whole(self, name: str, default: int, *, low: int, high: float = math.inf) -> int:
        """A whole number from ``low`` to ``high``."""
        value = self.body.get(name)
        if value is None:
            return default
        if type(value) is not int or not low <= value <= high:
            most = f" to {high}" if high < math.inf else " on"
            raise RequestError(f"{name} is {quoted(value)}: a whole number from {low}{most} is needed.", name)
        return value

    def optional_whole(self, name: str, *, low: int) -> int | None:
        """A whole number from ``low`` on, or None where there is none."""
        return None if self.body.get(name) is None else self.whole(name, low, low=low, high=2**63 - 1)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.body.get(name)
        if not isinstance(value, bool | None):
            raise RequestError(f"{name} is {quoted(value)}: true or false is needed.", name)
        return bool(value)

    def one_of(self, name: str, older: str) -> str:
        """The name under which a value is given, of two."""
        if self.body.get(name) is not None and self.body.get(older) is not None:
            raise RequestError(f"{name} and the older {older} are both given. Give one.", older)
        return older if self.body.get(older) is not None else name

    def stops(self) -> tuple[str, ...]:
        """``stop``, a text or a few."""
        value = self.body.get("stop")
        stops = [value] if isinstance(value, str) else [] if value is None else value
        if (
            not isinstance(stops, Sequence)
            or len(stops) > MOST_STOPS
            or not all(isinstance(stop, str) and stop for stop in stops)
        ):
            raise RequestError(f"stop is a text, or a list of at most {MOST_STOPS}, none of them empty.", "stop")
        return tuple(stops)

    def include_usage(self) -> bool:
        """``stream_options.include_usage``."""
        options = self.body.get("stream_options")
        if options is None:
            return False
        if not isinstance(options, Mapping) or not isinstance(options.get("include_usage"), bool | None):
            raise RequestError('stream_options is {"include_usage": true} or false.', "stream_options")
        return bool(options.get("include_usage"))

    def tool_choice(self) -> str:
        """``auto`` or ``none``; others would need constrained decoding."""
        value = self.body.get("tool_choice")
        if value not in (None, "auto", "none"):
            raise RequestError(
                'tool_choice is "auto" or "none": a model cannot be made to call a function here.', "tool_choice"
            )
        return value or "auto"

    def tool_names(self) -> tuple[str, ...]:
        """Functions that may be called. The list itself has been read by then, and is well formed."""
        if self.tool_choice() == "none":
            return ()
        tools = self.body.get("tools") or self.body.get("functions") or []
        return tuple((tool.get("function") or tool)["name"] for tool in tools)
