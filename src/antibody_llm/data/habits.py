"""What a chat template does with roles, systems, tools and thinking: found by asking it once with sentinels.

Nothing here reads the template's source.
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from .control import HOLD, ControlTokens, unguarded
from .sandbox import Sandbox, TemplateRefusal

PLACEHOLDER = f"{HOLD}CONTENT"
"""Content of ours that no row can spell."""
QUESTION, _SYSTEM, _THOUGHT, _RESULT = ("ANTIBODY-" + word for word in ("QUESTION", "SYSTEM", "THOUGHT", "RESULT"))
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
_REASONING_FIELDS = ("reasoning_content", "thinking")


class Habits:
    """What one template does. Each answer is found where it is first wanted, and kept."""

    def __init__(self, sandbox: Sandbox, control: ControlTokens) -> None:
        self._sandbox, self._control = sandbox, control

    def ask(self, chat: Sequence[dict[str, Any]], *, tools: Any = None, prompt: bool = False) -> str | None:
        """A probe, or None where the template refuses it."""
        with suppress(TemplateRefusal):
            return self._sandbox.rendered(chat, tools, prompt=prompt)
        return None

    @cached_property
    def example(self) -> str:
        """A conversation as the template writes it, to compare ways of encoding on."""
        chat = [user("What is two and two?"), assistant("It is four.")]
        return self.ask(chat) or self.ask(chat[:1], prompt=True) or ""

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
        """The token that ends a turn, and what follows it at the end of a conversation."""
        return self._first_control_after(PLACEHOLDER, self.ask([user(QUESTION), assistant(PLACEHOLDER)]))

    @cached_property
    def _call_end(self) -> tuple[str, str]:
        """The token that ends a turn which calls a tool, and what follows it at the end of a conversation."""
        rendered = self.ask([user(QUESTION), _calling()], tools=_TOOLS) or self.ask([user(QUESTION), _calling()])
        return self._first_control_after(_ARGUMENT, rendered, special=True)

    @cached_property
    def empty_thought(self) -> str:
        """What the template writes before an answer that came without thinking, beyond its generation prompt.

        Qwen 3's writes an empty block of thinking. The row has none, and none is trained.
        """
        prompt = self.ask([user(QUESTION)], prompt=True)
        whole = self.ask([user(QUESTION), assistant(PLACEHOLDER)])
        if prompt is None or whole is None or not whole.startswith(prompt):
            return ""
        lead = whole[len(prompt) :].partition(PLACEHOLDER)[0]
        return lead if without_space(lead) == "<think></think>" else ""

    @cached_property
    def takes_two_systems(self) -> bool:
        """Whether two system messages in front are both rendered; else they are joined, with an empty line."""
        systems = [{"role": "system", "content": text} for text in (_SYSTEM, _RESULT)]
        rendered = self.ask([*systems, user(QUESTION)], prompt=True)
        return rendered is not None and _SYSTEM in rendered and _RESULT in rendered

    @cached_property
    def takes_tools(self) -> bool:
        """Whether definitions of tools are rendered."""
        return _TOOL in (self.ask([user(QUESTION)], tools=_TOOLS, prompt=True) or "")

    @cached_property
    def takes_tool_calls(self) -> bool:
        """Whether an assistant's calls and a tool's results are rendered beside definitions of tools."""
        return self._takes_calls(_TOOLS) or (not self.takes_tools and self._takes_calls(None))

    @cached_property
    def takes_tool_calls_alone(self) -> bool:
        """Whether calls and results are rendered without definitions, for which a model may have another template."""
        return self._takes_calls(None)

    def _takes_calls(self, tools: Any) -> bool:
        """Whether names, arguments and results are rendered."""
        result = {"role": "tool", "content": _RESULT, "tool_call_id": _CALL, "name": _TOOL}
        rendered = self.ask([user(QUESTION), _calling(), result], tools=tools, prompt=True) or ""
        return all(sentinel in rendered for sentinel in (_TOOL, _ARGUMENT, _RESULT))

    @cached_property
    def drops_text_beside_calls(self) -> bool:
        """Whether the text of a turn that calls a tool is left out."""
        rendered = self.ask([user(QUESTION), _calling() | {"content": PLACEHOLDER}], tools=_TOOLS)
        return rendered is not None and PLACEHOLDER not in rendered

    @cached_property
    def reasoning_field(self) -> str | None:
        """The field in which the template finds an assistant's thinking; None where it has no place for it."""
        for field in _REASONING_FIELDS:
            rendered = self.ask([user(QUESTION), assistant(PLACEHOLDER) | {field: _THOUGHT}])
            if rendered is not None and _THOUGHT in rendered:
                return field
        return None

    @cached_property
    def forgets_reasoning(self) -> bool:
        """Whether the thinking of a turn is left out once the conversation has gone on."""
        if self.reasoning_field is None:
            return False
        first = assistant(PLACEHOLDER) | {self.reasoning_field: _THOUGHT}
        rendered = self.ask([user(QUESTION), first, user(QUESTION), assistant(PLACEHOLDER)])
        return rendered is not None and _THOUGHT not in rendered

    @cached_property
    def trims(self) -> bool:
        """Whether spaces around a message's content are left out."""
        rendered = self.ask([user(f"  {QUESTION}  "), assistant(PLACEHOLDER)])
        return rendered is not None and f"  {QUESTION}  " not in rendered

    @cached_property
    def alternates(self) -> bool:
        """Whether two messages of one role in a row are refused."""
        return self.ask([user(QUESTION), user(QUESTION)], prompt=True) is None

    @cached_property
    def prompts_as_it_answers(self) -> bool:
        """Whether an answered conversation begins with what the model is asked."""
        prompt = self.ask([user(QUESTION)], prompt=True)
        whole = self.ask([user(QUESTION), assistant(PLACEHOLDER)])
        return prompt is None or whole is None or whole.startswith(prompt)

    @cached_property
    def plain_marks(self) -> tuple[str, ...]:
        """Marks between turns that are plain text, such as ``[/INST]`` or ``### Response:``.

        Ids cannot protect them: a row that spells one looks like the template to any model.
        """
        chat = [user(QUESTION), assistant(PLACEHOLDER), user(QUESTION)]
        rendered = self.ask(chat, prompt=True)
        if rendered is None or QUESTION not in rendered:
            return ()
        before_first, *between, after_last = rendered.replace(PLACEHOLDER, QUESTION).split(QUESTION)
        marks = [after_last, *between]
        if not any(len(self._control.split(text)) == 1 for text in marks):
            return ()
        words = [piece.strip() for text in (before_first, *marks) for piece in self._control.split(text)[::2]]
        return tuple(dict.fromkeys(word for word in words if any(not c.isalnum() for c in word)))

    def _first_control_after(self, sentinel: str, rendered: str | None, *, special: bool = False) -> tuple[str, str]:
        """The first control token behind the sentinel, and what follows it; both are empty where there is none."""
        if rendered is None or sentinel not in rendered:
            return "", ""
        pieces = self._control.split(rendered.rpartition(sentinel)[2])
        for index in range(1, len(pieces), 2):
            if not special or pieces[index] in self._control.special:
                return pieces[index], "".join(pieces[index + 1 :])
        return "", ""


def without_space(text: str) -> str:
    """The text without spaces and without the marks of guarded content."""
    return "".join(unguarded(text).split())


def user(content: str) -> dict[str, Any]:
    """A user's message, as transformers takes it."""
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, Any]:
    """An assistant's message, as transformers takes it."""
    return {"role": "assistant", "content": content}


def _calling() -> dict[str, Any]:
    function = {"name": _TOOL, "arguments": {"value": _ARGUMENT}}
    return assistant("") | {"tool_calls": [{"type": "function", "id": _CALL, "function": function}]}
