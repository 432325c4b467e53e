"""What a model's chat template and tokenizer do with these rows that their writer may not expect."""

from collections.abc import Callable, Sequence

from .encode import Renderer
from .records import Message, Record, Template

NUM_LINES_SHOWN = 5


def template_notices(records: Sequence[Record], renderer: Renderer) -> list[str]:
    """One sentence for each thing that is found on the template itself and concerns a row of these.

    What would make training wrong is not among them: the renderer refuses such rows.
    """
    chats = [record for record in records if record.template is Template.CHAT]
    tokenizer, notices = renderer.tokenizer, []
    if chats and tokenizer.chat_template:
        habits, owner = renderer.template.habits, tokenizer.name_or_path
        if not habits.turn_end:
            notices.append(
                f"the chat template of {owner} writes no token at the end of an answer: the end-of-sequence token "
                f"{tokenizer.eos_token!r} is appended to what is trained, and whoever serves the model must stop at it."
            )
        if habits.trims and (lines := _lines(chats, _has_outer_space)):
            notices.append(
                f"the chat template of {owner} trims the text of messages: spaces around it are not trained ({lines})."
            )
        if habits.forgets_reasoning and (lines := _lines(chats, _thinks_before_the_end)):
            notices.append(
                f"the chat template of {owner} leaves the thinking of earlier turns out once a conversation goes on. "
                "Each trained turn is trained with its own thinking, and later turns of the same row see it, which a "
                f"server would not show them ({lines}). Give a row for each turn to train exactly what is served."
            )
        if (lines := _lines(chats, _speaks_beside_calls)) and habits.drops_text_beside_calls:
            notices.append(
                f"the chat template of {owner} leaves out what an assistant says beside a call of a tool: the call is "
                f"trained, the text is not ({lines})."
            )
        if habits.plain_marks:
            marks = ", ".join(repr(mark) for mark in habits.plain_marks[:3])
            notices.append(
                f"the chat template of {owner} marks turns in plain text ({marks}), which token ids cannot tell from "
                "the words of a message. Rows that spell such a mark are flagged, and trained as the text that they "
                "are."
            )
        if _begins_twice(renderer):
            notices.append(
                f"the chat template and the tokenizer of {owner} both put {tokenizer.bos_token!r} in front: one is "
                "used here. A server that tokenises the rendered text with special tokens would feed two."
            )
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        notices.append(
            f"the padding token of {tokenizer.name_or_path} is its end-of-sequence token {tokenizer.eos_token!r}. The "
            "end of each answer is trained all the same: padding is recognised by its place."
        )
    return notices


def _begins_twice(renderer: Renderer) -> bool:
    bos = renderer.tokenizer.bos_token
    if not bos or not renderer.template.habits.example.startswith(bos):
        return False
    return list(renderer.tokenizer("A").input_ids)[:1] == [renderer.tokenizer.bos_token_id]


def _has_outer_space(message: Message, _: bool) -> bool:
    return message.content != message.content.strip()


def _speaks_beside_calls(message: Message, _: bool) -> bool:
    return bool(message.tool_calls) and bool(message.content.strip())


def _thinks_before_the_end(message: Message, is_last: bool) -> bool:
    return message.role == "assistant" and not is_last and bool(message.reasoning or "<think>" in message.content)


def _lines(records: Sequence[Record], holds: Callable[[Message, bool], bool]) -> str:
    """Where a message is so, for a sentence; empty where none is."""
    lines = [
        record.line
        for record in records
        if any(holds(message, message is record.messages[-1]) for message in record.messages)
    ]
    shown = ", ".join(map(str, lines[:NUM_LINES_SHOWN]))
    more = f" and {len(lines) - NUM_LINES_SHOWN} more" if len(lines) > NUM_LINES_SHOWN else ""
    return f"line {shown}{more}" if lines else ""
