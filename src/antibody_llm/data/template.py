"""A tokenizer's chat template: asked under limits, with content that cannot pass for the template's own words.

A template is a program that came with a model. It runs in jinja's sandbox, for ``SECONDS`` and ``BYTES`` at most, and
whatever it raises is its answer. What it does with roles, systems, tools and thinking is found by asking it once with
sentinels, not by reading its source.
"""

import json
import resource
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import dropwhile
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import ModelError
from .control import HOLD, ControlTokens, unguarded
from .problems import BadRow
from .records import Message

SECONDS = 5.0
"""One rendering takes a millisecond or less."""
BYTES = 2 * 2**30
"""More memory than the process has when the rendering begins."""
EXPANSION, ALLOWANCE = 20, 1_000_000
"""A rendered text has at most so many characters for each of its content's, and so many more."""

PLACEHOLDER = f"{HOLD}CONTENT"
"""Content of ours that no row can spell."""
_QUESTION, _SYSTEM, _THOUGHT, _RESULT = ("ANTIBODY-" + word for word in ("QUESTION", "SYSTEM", "THOUGHT", "RESULT"))
_TOOL, _ARGUMENT, _CALL = "antibody_tool", "ANTIBODY-ARGUMENT", "antibody0"
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": _TOOL,
            "description": "A probe.",
            "parameters": {
                "type": "object",
                "properties": {"value": {"type": "string", "description": "A value."}},
                "required": ["value"],
            },
        },
    }
]
_LOOKED_UP = frozenset(
    ("type", "function", "name", "description", "parameters", "properties", "required", "items", "enum", "arguments")
)
"""Fields of tools by their names in templates, which must find them."""
_REASONING_FIELDS = ("reasoning_content", "thinking")


class TemplateRefusal(Exception):
    """The template does not take these messages; its own reason."""


class ChatTemplate:
    """The chat template of one tokenizer that has one.

    Raises:
        ModelError: it does not render content that is plain text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control: ControlTokens) -> None:
        self.tokenizer, self.control = tokenizer, control
        self.owner = tokenizer.name_or_path
        self._limits = _Limits()
        self._unsaid_of: dict[Any, frozenset[int]] = {}
        if self._ask([_user(_QUESTION), _assistant(PLACEHOLDER)]) is None:
            return  # a question and an answer are refused: the rows will say so with the template's reason
        rendered = self._asked(_assistant(PLACEHOLDER))
        if _QUESTION not in rendered or PLACEHOLDER not in rendered:  # those of vision models want lists of parts
            raise ModelError(
                f"the chat template of {self.owner} does not render a message's content that is plain text. Give "
                "prompt/completion rows, or use another template."
            )

    # -- rows -----------------------------------------------------------------------------------------------------

    def render(self, messages: Sequence[Message], tools: str = "", *, prompt: bool = False) -> str:
        """The conversation as the template writes it, its content guarded (``ControlTokens.guarded``).

        Args:
            messages: With roles ``system``, ``user``, ``assistant`` and ``tool``.
            tools: As in ``Record``.
            prompt: Whether the model is asked to go on, with whatever begins an assistant's turn.

        Raises:
            BadRow: the template refuses the messages, or would leave some of them out.
        """
        return self._render(messages, tools, prompt=prompt)

    def text_after_turn(self, before: Sequence[Message], after: Sequence[Message], tools: str = "") -> str | None:
        """What stands behind an assistant's content that follows ``before``, up to the turn that follows ``after``.

        None where the template does not render the content.
        """
        rendered = self._render([*before, None, *after], tools, prompt=True)
        return rendered.partition(PLACEHOLDER)[2] if PLACEHOLDER in rendered else None

    def _render(self, messages: Sequence[Message | None], tools: str, *, prompt: bool) -> str:
        """None stands for an assistant's turn whose content is the placeholder."""
        for index, message in enumerate(messages):
            if message is not None:
                self._require_place(message, f"messages[{index}]", beside_tools=bool(tools))
        if tools and not self.takes_tools:
            raise BadRow(
                "tools",
                f"the chat template of {self.owner} renders no tool definitions, so that the model would not see them. "
                "Use a model whose template does, or remove the field.",
                "tools",
            )
        chat = [_assistant(PLACEHOLDER) if message is None else self._chat_message(message) for message in messages]
        given = self._guarded(json.loads(tools)) if tools else None
        unsaid = self._unsaid(chat, given, prompt=prompt)
        chat = chat if self.takes_two_systems else _systems_joined(chat)
        try:
            rendered = self._rendered(chat, given, prompt=prompt)
        except TemplateRefusal as refusal:
            raise BadRow(
                "refused by the template",
                f"the chat template of {self.owner} refuses the messages ({refusal}). Change their roles or order, or "
                "use another template.",
            ) from None
        for index, message in enumerate(messages):
            if message is not None and message.role in ("system", "user"):
                self._require_said(message, rendered, f"messages[{index}]", unsaid=index in unsaid)
        return rendered

    def _unsaid(self, chat: Sequence[dict[str, Any]], tools: Any, *, prompt: bool) -> frozenset[int]:
        """Which messages of a chat with these roles are left out: their text may still occur elsewhere in it."""
        shape = tuple((message["role"], "tool_calls" in message) for message in chat), bool(tools), prompt
        if shape not in self._unsaid_of:
            asked = {
                index: f"ANTIBODY-SAID-{index}-" for index, m in enumerate(chat) if m["role"] in ("system", "user")
            }
            probe = [message | {"content": asked.get(index, message["content"])} for index, message in enumerate(chat)]
            rendered = self._ask(
                probe if self.takes_two_systems else _systems_joined(probe), tools=tools, prompt=prompt
            )
            unsaid = () if rendered is None else (index for index, text in asked.items() if text not in rendered)
            self._unsaid_of[shape] = frozenset(unsaid)
        return self._unsaid_of[shape]

    def _require_said(self, message: Message, rendered: str, field: str, *, unsaid: bool) -> None:
        """Raises ``BadRow`` where a text that the model should read is left out of what was rendered."""
        said = self._guarded(message.content)
        if not unsaid and (said in rendered or said.strip() in rendered):
            return
        quoted = json.dumps(said, ensure_ascii=False)[1:-1]  # some templates write a content as JSON
        if unsaid or not any(_without_space(text) in _without_space(rendered) for text in (said, quoted)):
            raise BadRow(
                "left out",
                f"the chat template of {self.owner} leaves this {message.role} message out, so that it would never "
                "reach the model. Move it to where the template has a place for it, or use another template.",
                field,
            )

    def _require_place(self, message: Message, field: str, *, beside_tools: bool) -> None:
        """Raises ``BadRow`` for what the template would drop in silence."""
        takes_tool_calls = self.takes_tool_calls if beside_tools else self.takes_tool_calls_alone
        if (message.tool_calls or message.role == "tool") and not takes_tool_calls:
            raise BadRow(
                "tool calls",
                f"the chat template of {self.owner} renders no tool calls and results, so that the model would not see "
                "them. Use a model whose template does, or remove the row.",
                f"{field}.tool_calls" if message.tool_calls else f"{field}.role",
            )
        if message.reasoning and self.reasoning_field is None:
            raise BadRow(
                "reasoning",
                f"the chat template of {self.owner} has no place for an assistant's thinking, and a model that is "
                "trained without it would learn not to think. Remove the field, or use a model whose template has it.",
                f"{field}.reasoning_content",
            )

    def _chat_message(self, message: Message) -> dict[str, Any]:
        reasoning, content = message.reasoning, message.content
        if message.role == "assistant" and not reasoning and (apart := thinking_apart(content)) is not None:
            thought, answer = apart
            # An empty block is left to a template that writes one anyway.
            if self.reasoning_field is not None and (thought.strip() or self.empty_thought):
                reasoning, content = thought, answer
        chat: dict[str, Any] = {"role": message.role, "content": self._guarded(content)}
        if reasoning.strip() and self.reasoning_field is not None:
            chat[self.reasoning_field] = self._guarded(reasoning)
        if message.tool_calls:
            chat["tool_calls"] = [
                {
                    "type": "function",
                    "function": {
                        "name": self._guarded(call.name),
                        "arguments": self._guarded(json.loads(call.arguments)),
                    },
                }
                | ({"id": self._guarded(call.call_id)} if call.call_id else {})
                for call in message.tool_calls
            ]
        if message.tool_call_id:
            chat["tool_call_id"] = self._guarded(message.tool_call_id)
        if message.name:
            chat["name"] = self._guarded(message.name)
        return chat

    def _guarded(self, value: Any) -> Any:
        """Every text in a JSON value."""
        if isinstance(value, str):
            return self.control.guarded(value)
        if isinstance(value, Mapping):
            return {
                key if key in _LOOKED_UP else self.control.guarded(str(key)): self._guarded(inner)
                for key, inner in value.items()
            }
        return [self._guarded(inner) for inner in value] if isinstance(value, list) else value

    # -- what the template does ------------------------------------------------------------------------------------

    @cached_property
    def example(self) -> str:
        """A conversation as the template writes it, to compare ways of encoding on."""
        chat = [_user("What is two and two?"), _assistant("It is four.")]
        return self._ask(chat) or self._ask(chat[:1], prompt=True) or ""

    @property
    def turn_end(self) -> str:
        """The control token that ends an assistant's answer; empty where there is none."""
        return self._turn_end[0]

    @property
    def call_end(self) -> str:
        """The special token that ends an assistant's turn which calls a tool; empty where there is none."""
        return self._call_end[0]

    def end_of_turn(self, last: str, *, calls: bool) -> int | None:
        """Where the turn ends that a conversation's rendering ends with; None where no token ends it.

        Args:
            last: The rendering, from within the turn on. It may go on behind the turn (with a second end, a footer).
            calls: Whether the turn calls tools.
        """
        end, rest = self._call_end if calls else self._turn_end
        if end and last.endswith(end + rest):
            return len(last) - len(rest)
        found = last.rfind(end) if end else -1
        return None if found < 0 else found + len(end)

    @cached_property
    def _turn_end(self) -> tuple[str, str]:
        """The token that ends a turn, and what stands behind it at the end of a conversation."""
        return self._first_control_after(PLACEHOLDER, self._ask([_user(_QUESTION), _assistant(PLACEHOLDER)]))

    @cached_property
    def _call_end(self) -> tuple[str, str]:
        """The same for a turn that calls a tool."""
        rendered = self._ask([_user(_QUESTION), _calling()], tools=_TOOLS) or self._ask([_user(_QUESTION), _calling()])
        return self._first_control_after(_ARGUMENT, rendered, special=True)

    @cached_property
    def empty_thought(self) -> str:
        """What the template writes before an answer that came without thinking, beyond its generation prompt.

        Qwen 3's writes an empty block of thinking. The row has none, and none is trained.
        """
        prompt = self._ask([_user(_QUESTION)], prompt=True)
        whole = self._ask([_user(_QUESTION), _assistant(PLACEHOLDER)])
        if prompt is None or whole is None or not whole.startswith(prompt):
            return ""
        lead = whole[len(prompt) :].partition(PLACEHOLDER)[0]
        return lead if _without_space(lead) == "<think></think>" else ""

    @cached_property
    def takes_two_systems(self) -> bool:
        """Whether two system messages in front are both rendered; else they are joined, with an empty line."""
        systems = [{"role": "system", "content": text} for text in (_SYSTEM, _RESULT)]
        rendered = self._ask([*systems, _user(_QUESTION)], prompt=True)
        return rendered is not None and _SYSTEM in rendered and _RESULT in rendered

    @cached_property
    def takes_tools(self) -> bool:
        """Whether definitions of tools are rendered."""
        return _TOOL in (self._ask([_user(_QUESTION)], tools=_TOOLS, prompt=True) or "")

    @cached_property
    def takes_tool_calls(self) -> bool:
        """Whether an assistant's calls and a tool's results are rendered beside definitions of tools."""
        return self._takes_calls(_TOOLS) or (not self.takes_tools and self._takes_calls(None))

    @cached_property
    def takes_tool_calls_alone(self) -> bool:
        """Whether they are rendered in rows without definitions, for which a model may have another template."""
        return self._takes_calls(None)

    def _takes_calls(self, tools: Any) -> bool:
        """Whether names, arguments and results are rendered."""
        result = {"role": "tool", "content": _RESULT, "tool_call_id": _CALL, "name": _TOOL}
        rendered = self._ask([_user(_QUESTION), _calling(), result], tools=tools, prompt=True) or ""
        return all(sentinel in rendered for sentinel in (_TOOL, _ARGUMENT, _RESULT))

    @cached_property
    def drops_text_beside_calls(self) -> bool:
        """Whether the text of a turn that calls a tool is left out."""
        rendered = self._ask([_user(_QUESTION), _calling() | {"content": PLACEHOLDER}], tools=_TOOLS)
        return rendered is not None and PLACEHOLDER not in rendered

    @cached_property
    def reasoning_field(self) -> str | None:
        """The field in which the template finds an assistant's thinking; None where it has no place for it."""
        for field in _REASONING_FIELDS:
            rendered = self._ask([_user(_QUESTION), _assistant(PLACEHOLDER) | {field: _THOUGHT}])
            if rendered is not None and _THOUGHT in rendered:
                return field
        return None

    @cached_property
    def forgets_reasoning(self) -> bool:
        """Whether the thinking of a turn is left out once the conversation has gone on."""
        if self.reasoning_field is None:
            return False
        first = _assistant(PLACEHOLDER) | {self.reasoning_field: _THOUGHT}
        rendered = self._ask([_user(_QUESTION), first, _user(_QUESTION), _assistant(PLACEHOLDER)])
        return rendered is not None and _THOUGHT not in rendered

    @cached_property
    def trims(self) -> bool:
        """Whether spaces around a message's content are left out."""
        rendered = self._ask([_user(f"  {_QUESTION}  "), _assistant(PLACEHOLDER)])
        return rendered is not None and f"  {_QUESTION}  " not in rendered

    @cached_property
    def alternates(self) -> bool:
        """Whether two messages of one role in a row are refused."""
        return self._ask([_user(_QUESTION), _user(_QUESTION)], prompt=True) is None

    @cached_property
    def prompts_as_it_answers(self) -> bool:
        """Whether an answered conversation begins with what the model is asked."""
        prompt = self._ask([_user(_QUESTION)], prompt=True)
        whole = self._ask([_user(_QUESTION), _assistant(PLACEHOLDER)])
        return prompt is None or whole is None or whole.startswith(prompt)

    @cached_property
    def plain_marks(self) -> tuple[str, ...]:
        """Marks between turns that are plain text, such as ``[/INST]`` or ``### Response:``.

        Ids cannot protect them: a row that spells one looks like the template to any model.
        """
        chat = [_user(_QUESTION), _assistant(PLACEHOLDER), _user(_QUESTION)]
        rendered = self._ask(chat, prompt=True)
        if rendered is None or _QUESTION not in rendered:
            return ()
        before_first, *between, after_last = rendered.replace(PLACEHOLDER, _QUESTION).split(_QUESTION)
        marks = [after_last, *between]
        if not any(len(self.control.split(text)) == 1 for text in marks):
            return ()
        words = [piece.strip() for text in (before_first, *marks) for piece in self.control.split(text)[::2]]
        return tuple(dict.fromkeys(word for word in words if any(not c.isalnum() for c in word)))

    def _first_control_after(self, sentinel: str, rendered: str | None, *, special: bool = False) -> tuple[str, str]:
        """The first control token behind the sentinel, and what follows it; both are empty where there is none."""
        if rendered is None or sentinel not in rendered:
            return "", ""
        pieces = self.control.split(rendered.rpartition(sentinel)[2])
        for index in range(1, len(pieces), 2):
            if not special or pieces[index] in self.control.special:
                return pieces[index], "".join(pieces[index + 1 :])
        return "", ""

    # -- asking ----------------------------------------------------------------------------------------------------

    def _asked(self, answer: dict[str, Any]) -> str:
        return self._rendered([_user(_QUESTION), answer], None, prompt=False)

    def _ask(self, chat: Sequence[dict[str, Any]], *, tools: Any = None, prompt: bool = False) -> str | None:
        """A probe, or None where the template refuses it."""
        with suppress(TemplateRefusal):
            return self._rendered(chat, tools, prompt=prompt)
        return None

    def _rendered(self, chat: Sequence[dict[str, Any]], tools: Any, *, prompt: bool) -> str:
        try:
            with self._limits:
                rendered: Any = self.tokenizer.apply_chat_template(
                    list(chat), tools=tools, tokenize=False, add_generation_prompt=prompt
                )
        except _OverLimit as over:
            raise ModelError(f"the chat template of {self.owner} {over}. Use another template.") from None
        except MemoryError:
            raise ModelError(
                f"the chat template of {self.owner} takes more than {BYTES >> 30} GiB for one conversation. "
                "Use another template."
            ) from None
        except Exception as error:  # a template can raise whatever an expression can
            reason = " ".join(str(error).split()) or type(error).__name__
            raise TemplateRefusal(reason) from error
        rendered = str(rendered)
        if len(rendered) > ALLOWANCE and len(rendered) > ALLOWANCE + EXPANSION * len(
            json.dumps([chat, tools], ensure_ascii=False)
        ):
            raise ModelError(
                f"the chat template of {self.owner} makes {len(rendered):,} characters of one conversation. "
                "Use another template."
            )
        try:
            rendered.encode("utf-8")
        except UnicodeEncodeError:
            raise ModelError(
                f"the chat template of {self.owner} writes half a surrogate pair, which no tokenizer takes. "
                "Use another template."
            ) from None
        return rendered


def thinking_apart(content: str) -> tuple[str, str] | None:
    """(thinking, answer) of a turn whose text begins with a block ``<think>...</think>``; None where it does not."""
    head, _, rest = content.partition("<think>")
    thought, closed, answer = rest.partition("</think>")
    return (thought, answer) if closed and not head.strip() else None


def _systems_joined(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The chat with the system messages at its beginning as one."""
    rest = list(dropwhile(lambda message: message["role"] == "system", chat))
    systems = chat[: len(chat) - len(rest)]
    if len(systems) < 2:
        return chat
    return [{"role": "system", "content": "\n\n".join(message["content"] for message in systems)}, *rest]


def _without_space(text: str) -> str:
    return "".join(unguarded(text).split())


def _user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def _calling() -> dict[str, Any]:
    function = {"name": _TOOL, "arguments": {"value": _ARGUMENT}}
    return _assistant("") | {"tool_calls": [{"type": "function", "id": _CALL, "function": function}]}


class _OverLimit(BaseException):
    """Raised where the template is, by a timer; no exception that something in between might catch."""


class _Limits:
    """Stops what runs inside after ``SECONDS`` of computing (in the main thread, which alone has signals) or ``BYTES``.

    A class, and not a generator: it is entered twice for every row of an upload.
    """

    def __init__(self) -> None:
        self._used, self._looked_at = _address_space(), time.monotonic()

    def __enter__(self) -> None:
        if time.monotonic() - self._looked_at > 0.2:
            self.look_again()
        self._soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        if self._used is not None:
            wanted = (self._used + BYTES, self._soft, hard)
            resource.setrlimit(resource.RLIMIT_AS, (min(w for w in wanted if w != resource.RLIM_INFINITY), hard))
        self._timed = threading.current_thread() is threading.main_thread()
        if self._timed:
            self._handler = signal.signal(signal.SIGVTALRM, _stop)
            self._timer = signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)

    def __exit__(self, *raised: object) -> None:
        if self._timed:
            signal.setitimer(signal.ITIMER_VIRTUAL, *self._timer)
            signal.signal(signal.SIGVTALRM, self._handler)
        if self._used is not None:
            resource.setrlimit(resource.RLIMIT_AS, (self._soft, resource.getrlimit(resource.RLIMIT_AS)[1]))

    def look_again(self) -> None:
        """Take the process's present size as what it has without the template."""
        self._used, self._looked_at = _address_space(), time.monotonic()


def _stop(signum: int, frame: FrameType | None) -> None:
    raise _OverLimit(f"is still at work on one conversation after {SECONDS:g} seconds")


def _address_space() -> int | None:
    """Bytes of the process's address space; None where the system does not say, and no limit is set."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError):
        return None
