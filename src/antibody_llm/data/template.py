"""Conversations of rows as a tokenizer's chat template writes them, with content that cannot pass for its own words."""

import json
from collections.abc import Mapping, Sequence
from itertools import dropwhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import ModelError
from .control import ControlTokens
from .habits import PLACEHOLDER, QUESTION, Habits, assistant, user, without_space
from .problems import BadRow
from .records import Message
from .sandbox import Sandbox, TemplateRefusal

_LOOKED_UP = frozenset(
    ("type", "function", "name", "description", "parameters", "properties", "required", "items", "enum", "arguments")
)
"""Fields of tools by their names in templates, which must find them."""


class ChatTemplate:
    """The chat template of one tokenizer that has one.

    Attributes:
        habits: What the template does, as far as it has been asked.

    Raises:
        ModelError: it does not render content that is plain text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control: ControlTokens) -> None:
        self.control = control
        self.owner = tokenizer.name_or_path
        self._sandbox = Sandbox(tokenizer)
        self.habits = Habits(self._sandbox, control)
        self._unsaid_of: dict[Any, frozenset[int]] = {}
        answered = self.habits.ask([user(QUESTION), assistant(PLACEHOLDER)])
        if answered is None:
            return  # a question and an answer are refused: the rows will say so with the template's reason
        if QUESTION not in answered or PLACEHOLDER not in answered:  # those of vision models want lists of parts
            raise ModelError(
                f"the chat template of {self.owner} does not render a message's content that is plain text. Give "
                "prompt/completion rows, or use another template."
            )

    def render(self, messages: Sequence[Message], tools: str = "", *, prompt: bool = False) -> str:
        """The conversation as the template writes it, its content guarded (``ControlTokens.guarded``).

        Args:
            messages: Messages of roles ``system``, ``user``, ``assistant`` and ``tool``.
            tools: Definitions of tools as JSON text (``Record.tools``).
            prompt: Whether the model is asked to go on, with whatever begins an assistant's turn.

        Raises:
            BadRow: the template refuses the messages, or would leave some of them out.
        """
        return self._render(messages, tools, prompt=prompt)

    def text_after_turn(self, before: Sequence[Message], after: Sequence[Message], tools: str = "") -> str | None:
        """The text behind an assistant's content that follows ``before``, up to the turn that follows ``after``.

        None where the template does not render the content.
        """
        rendered = self._render([*before, None, *after], tools, prompt=True)
        return rendered.partition(PLACEHOLDER)[2] if PLACEHOLDER in rendered else None

    def _render(self, messages: Sequence[Message | None], tools: str, *, prompt: bool) -> str:
        """Render messages, of which None is an assistant's turn whose content is the placeholder."""
        for index, message in enumerate(messages):
            if message is not None:
                self._require_place(message, f"messages[{index}]", beside_tools=bool(tools))
        if tools and not self.habits.takes_tools:
            raise BadRow(
                "tools",
                f"the chat template of {self.owner} renders no tool definitions, so that the model would not see them. "
                "Use a model whose template does, or remove the field.",
                "tools",
            )
        chat = [assistant(PLACEHOLDER) if message is None else self._chat_message(message) for message in messages]
        given = self._guarded(json.loads(tools)) if tools else None
        unsaid = self._unsaid(chat, given, prompt=prompt)
        chat = chat if self.habits.takes_two_systems else _systems_joined(chat)
        try:
            rendered = self._sandbox.rendered(chat, given, prompt=prompt)
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
            rendered = self.habits.ask(
                probe if self.habits.takes_two_systems else _systems_joined(probe), tools=tools, prompt=prompt
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
        if unsaid or not any(without_space(text) in without_space(rendered) for text in (said, quoted)):
            raise BadRow(
                "left out",
                f"the chat template of {self.owner} leaves this {message.role} message out, so that it would never "
                "reach the model. Move it to where the template has a place for it, or use another template.",
                field,
            )

    def _require_place(self, message: Message, field: str, *, beside_tools: bool) -> None:
        """Raises ``BadRow`` for what the template would drop in silence."""
        takes_tool_calls = self.habits.takes_tool_calls if beside_tools else self.habits.takes_tool_calls_alone
        if (message.tool_calls or message.role == "tool") and not takes_tool_calls:
            raise BadRow(
                "tool calls",
                f"the chat template of {self.owner} renders no tool calls and results, so that the model would not see "
                "them. Use a model whose template does, or remove the row.",
                f"{field}.tool_calls" if message.tool_calls else f"{field}.role",
            )
        if message.reasoning and self.habits.reasoning_field is None:
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
            if self.habits.reasoning_field is not None and (thought.strip() or self.habits.empty_thought):
                reasoning, content = thought, answer
        chat: dict[str, Any] = {"role": message.role, "content": self._guarded(content)}
        if reasoning.strip() and self.habits.reasoning_field is not None:
            chat[self.habits.reasoning_field] = self._guarded(reasoning)
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
        """A JSON value with every text in it guarded."""
        if isinstance(value, str):
            return self.control.guarded(value)
        if isinstance(value, Mapping):
            return {
                key if key in _LOOKED_UP else self.control.guarded(str(key)): self._guarded(inner)
                for key, inner in value.items()
            }
        return [self._guarded(inner) for inner in value] if isinstance(value, list) else value


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
