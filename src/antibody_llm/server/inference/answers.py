"""Answers in the API's own shapes: whole, and as the events of a stream.

A request with tools is not streamed piece by piece: whether a text is a call is known when it is whole.
"""

import json
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

from ...data.records import ToolCall
from .calls import tool_calls
from .engine import Answer, Choice
from .requests import Generation

Json = dict[str, Any]
_FINISH = {"stop": "stop", "length": "length", "cancelled": "stop"}


class ChatAnswer:
    """``POST /chat/completions``.

    Args:
        name: The model as the client named it.
        request: What was asked for.
    """

    def __init__(self, name: str, request: Generation) -> None:
        self.request = request
        self.head = {"id": _id("chatcmpl-"), "created": int(time.time()), "model": name}

    def whole(self, answer: Answer) -> Json:
        """The answer as one object."""
        choices = [self._choice(index, choice) for index, choice in enumerate(answer.choices)]
        return {**self.head, "object": "chat.completion", "choices": choices, "usage": usage(answer)}

    def first(self) -> Iterator[str]:
        """How a stream begins."""
        for index in range(self.request.num_choices):
            yield self._chunk(index, {"role": "assistant", "content": "", "refusal": None})

    def piece(self, index: int, text: str) -> Iterator[str]:
        """A further piece of a completion."""
        if not self.request.tools:
            yield self._chunk(index, {"content": text})

    def last(self, answer: Answer) -> Iterator[str]:
        """How a stream ends."""
        for index, choice in enumerate(answer.choices):
            text, calls = tool_calls(choice.text, self.request.tools)
            if self.request.tools and text:
                yield self._chunk(index, {"content": text})
            if calls:
                yield self._chunk(index, {"tool_calls": _calls(calls, numbered=True)})
            yield self._chunk(index, {}, "tool_calls" if calls else _FINISH[choice.finish])
        if self.request.include_usage:
            yield _event({**self.head, "object": "chat.completion.chunk", "choices": [], "usage": usage(answer)})
        yield DONE

    def _choice(self, index: int, choice: Choice) -> Json:
        text, calls = tool_calls(choice.text, self.request.tools)
        message: Json = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
        if calls:
            message["tool_calls"] = _calls(calls)
        finish = "tool_calls" if calls else _FINISH[choice.finish]
        return {"index": index, "message": message, "logprobs": None, "finish_reason": finish}

    def _chunk(self, index: int, delta: Json, finish: str | None = None) -> str:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _event({**self.head, "object": "chat.completion.chunk", "choices": [choice]})


class TextAnswer:
    """``POST /completions``; see ``ChatAnswer``."""

    def __init__(self, name: str, request: Generation) -> None:
        self.request = request
        self.head = {"id": _id("cmpl-"), "object": "text_completion", "created": int(time.time()), "model": name}

    def whole(self, answer: Answer) -> Json:
        """The answer as one object."""
        choices = [
            self._choice(index, choice.text, _FINISH[choice.finish]) for index, choice in enumerate(answer.choices)
        ]
        return {**self.head, "choices": choices, "usage": usage(answer)}

    def first(self) -> Iterator[str]:
        """Yield nothing: a completion has no opening event."""
        yield from ()

    def piece(self, index: int, text: str) -> Iterator[str]:
        """A further piece of a completion."""
        yield _event({**self.head, "choices": [self._choice(index, text, None)]})

    def last(self, answer: Answer) -> Iterator[str]:
        """How a stream ends."""
        for index, choice in enumerate(answer.choices):
            yield _event({**self.head, "choices": [self._choice(index, "", _FINISH[choice.finish])]})
        if self.request.include_usage:
            yield _event({**self.head, "choices": [], "usage": usage(answer)})
        yield DONE

    def _choice(self, index: int, text: str, finish: str | None) -> Json:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}


class ResponseAnswer:
    """``POST /responses``; see ``ChatAnswer``."""

    def __init__(self, name: str, request: Generation) -> None:
        self.request = request
        self.message_id = _id("msg_")
        self.sent = 0
        self.head: Json = {
            "id": _id("resp_"),
            "object": "response",
            "created_at": int(time.time()),
            "model": name,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "max_output_tokens": request.max_tokens,
            "parallel_tool_calls": True,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "tool_choice": "auto",
            "tools": [],
            "store": False,
        }

    def whole(self, answer: Answer) -> Json:
        """The answer as one object."""
        choice = answer.choices[0]
        text, calls = tool_calls(choice.text, self.request.tools)
        output = [self._message(text)] if text or not calls else []
        output += [_call_item(call) for call in calls]
        cut = choice.finish == "length"
        counts = usage(answer)
        return {
            **self.head,
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": output,
            "usage": {
                "input_tokens": counts["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": counts["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counts["total_tokens"],
            },
        }

    def first(self) -> Iterator[str]:
        """How a stream begins."""
        begun = {**self.head, "status": "in_progress", "output": [], "usage": None}
        yield self._send("response.created", response=begun)
        yield self._send("response.in_progress", response=begun)
        if not self.request.tools:
            yield from self._open()

    def piece(self, index: int, text: str) -> Iterator[str]:
        """A further piece of the text."""
        if not self.request.tools:
            yield self._delta(text)

    def last(self, answer: Answer) -> Iterator[str]:
        """How a stream ends."""
        response = self.whole(answer)
        for at, item in enumerate(response["output"]):
            if item["type"] == "message":
                if self.request.tools:
                    yield from self._open()
                    yield self._delta(item["content"][0]["text"])
                yield from self._close(item)
            else:
                begun = item | {"arguments": "", "status": "in_progress"}
                yield self._send("response.output_item.added", output_index=at, item=begun)
                of_item = {"item_id": item["id"], "output_index": at}
                yield self._send("response.function_call_arguments.delta", delta=item["arguments"], **of_item)
                yield self._send(
                    "response.function_call_arguments.done", arguments=item["arguments"], name=item["name"], **of_item
                )
                yield self._send("response.output_item.done", output_index=at, item=item)
        yield self._send(f"response.{response['status']}", response=response)

    def _open(self) -> Iterator[str]:
        item = self._message("") | {"status": "in_progress", "content": []}
        yield self._send("response.output_item.added", output_index=0, item=item)
        yield self._send("response.content_part.added", part=_part(""), **self._place)

    def _delta(self, text: str) -> str:
        return self._send("response.output_text.delta", delta=text, logprobs=[], **self._place)

    def _close(self, item: Json) -> Iterator[str]:
        part = item["content"][0]
        yield self._send("response.output_text.done", text=part["text"], logprobs=[], **self._place)
        yield self._send("response.content_part.done", part=part, **self._place)
        yield self._send("response.output_item.done", output_index=0, item=item)

    @property
    def _place(self) -> Json:
        return {"item_id": self.message_id, "output_index": 0, "content_index": 0}

    def _message(self, text: str) -> Json:
        return {
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [_part(text)],
        }

    def _send(self, kind: str, **fields: Any) -> str:
        event = {"type": kind, "sequence_number": self.sent, **fields}
        self.sent += 1
        return f"event: {kind}\n{_event(event)}"


AnyAnswer = ChatAnswer | TextAnswer | ResponseAnswer
DONE = "data: [DONE]\n\n"


def usage(answer: Answer) -> dict[str, int]:
    """Counts of tokens, those that end a turn included."""
    generated = sum(choice.num_tokens for choice in answer.choices)
    prompt = answer.num_prompt_tokens
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


def failed(error: Json) -> str:
    """The event of a stream that breaks off."""
    return _event(error)


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _calls(calls: tuple[ToolCall, ...], *, numbered: bool = False) -> list[Json]:
    return [
        ({"index": index} if numbered else {})
        | {
            "id": call.call_id or _id("call_"),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for index, call in enumerate(calls)
    ]


def _call_item(call: ToolCall) -> Json:
    return {
        "id": _id("fc_"),
        "type": "function_call",
        "call_id": call.call_id or _id("call_"),
        "name": call.name,
        "arguments": call.arguments,
        "status": "completed",
    }


def _event(data: Json) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _id(prefix: str) -> str:
    return prefix + uuid4().hex[:24]
