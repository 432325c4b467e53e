"""Rows as tokens, so that a completion is trained after exactly the ids that precede it at inference.

A prompt is encoded on its own, as inference does, and the completion's ids are appended. Where encoding both in one
go leaves the prompt's ids as they are, the completion's ids are taken from there, since a SentencePiece tokenizer
marks the beginning of a text that stands alone; elsewhere the completion is encoded on its own.

Chat rows. ``render(messages[:k], add_generation_prompt=True)`` is the prompt of turn k, and what
``render(messages[:k + 1])`` adds to it is the completion, up to and including the token that ends a turn: the first
special token that the template puts after an assistant's content, or else an end-of-sequence token that is appended.
A template that rewrites earlier turns (Qwen3 strips their thinking) has every trained turn rendered as if it were the
last one, and what follows it is taken from the later rendering.

Text rows are ids(prompt) with the special tokens that the tokenizer itself puts in front, ids(completion), end of
sequence. Nothing is ever put in front twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from ..errors import DataError, ModelError
from .records import Message, Record, Template, TokenizedRow

NUM_ROWS_SHOWN = 5
PLACEHOLDER = "ANTIBODY-CONTENT"
"""Stands for a turn's content where only what the template puts around it matters."""


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Rows that fit, and (line, number of tokens) of those that do not."""

    rows: list[TokenizedRow]
    too_long: list[tuple[int, int]]


class Renderer:
    """Renders rows with one tokenizer.

    Raises:
        ModelError: the tokenizer has no end-of-sequence token, or no chat template where a row is a chat.
        DataError: the chat template refuses a row (names file and line).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> None:
        if not isinstance(tokenizer.eos_token_id, int):
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path} has no end-of-sequence token, so that a completion cannot "
                'end. Set "eos_token" in its tokenizer_config.json.'
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.eos_id: int = tokenizer.eos_token_id

    def encode(self, record: Record) -> TokenizedRow:
        """The conversation up to its last trained turn, one span per trained turn. May exceed ``max_length``."""
        assert _trained_turns(record), f"{record.where} trains nothing: load_records lets no such row pass"
        if record.template is Template.TEXT:
            prompt, completion = record.messages
            prompt_ids = self._text_prompt_ids(prompt.content)
            ids = prompt_ids + self._text_completion_ids(prompt.content, completion.content)
            return TokenizedRow(record.row_id, tuple(ids), ((len(prompt_ids), len(ids)),), record.template)
        ids, spans, done = [], [], ""
        previous: int | None = None
        for index in _trained_turns(record):
            between = (
                self._prompt_text(record, index) if previous is None else self._between(record, previous, index, done)
            )
            ids += self._after(self._turn_end_text if previous is not None else "", between)
            start = len(ids)
            completion_text = self._completion_text(record, index, record.messages[index].content)
            ids += self._chat_completion_ids(between, completion_text)
            spans.append((start, len(ids)))
            done, previous = done + between + completion_text, index
        return TokenizedRow(record.row_id, tuple(ids), tuple(spans), record.template)

    def encode_prompt(self, record: Record) -> list[int]:
        """Everything before the last assistant turn, or the whole row where it ends with a question."""
        index = len(record.messages) - (record.messages[-1].role == "assistant")
        if record.template is Template.TEXT:
            return self._text_prompt_ids(record.messages[0].content)
        return self._ids(self._prompt_text(record, index))

    def completion_ids(self, record: Record, text: str, turn: int = -1) -> list[int]:
        """``text`` as it would be trained in place of a turn, the token that ends the turn included.

        Args:
            record: The row; without a trained turn, the answer still to come.
            text: For example a refusal.
            turn: Which of the row's trained turns, as in ``TokenizedRow.spans``.
        """
        if record.template is Template.TEXT:
            return self._text_completion_ids(record.messages[0].content, text)
        index = (_trained_turns(record) or [len(record.messages)])[turn]
        return self._chat_completion_ids(self._prompt_text(record, index), self._completion_text(record, index, text))

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens at which generation ends: end of sequence, and the chat template's end of a turn where it differs."""
        turn_end = self._turn_end_id if self.tokenizer.chat_template else None
        return (self.eos_id,) if turn_end in (None, self.eos_id) else (self.eos_id, turn_end)

    # Text rows.

    def _text_prompt_ids(self, prompt: str) -> list[int]:
        ids = list(self.tokenizer(prompt).input_ids)
        while ids and ids[-1] == self.eos_id:  # some tokenizers also end what they encode
            ids.pop()
        if len(ids) > 1 and ids[0] == ids[1] == self.tokenizer.bos_token_id:  # the row spells it out
            ids.pop(0)
        return ids

    def _text_completion_ids(self, prompt: str, completion: str) -> list[int]:
        prompt_ids, joint = self._text_prompt_ids(prompt), self._text_prompt_ids(prompt + completion)
        fits = joint[: len(prompt_ids)] == prompt_ids
        ids = joint[len(prompt_ids) :] if fits else self._ids(completion)
        return ids if ids[-1:] == [self.eos_id] else [*ids, self.eos_id]

    # Chat rows.

    def _prompt_text(self, record: Record, index: int) -> str:
        return self._render(record.messages[:index], where=record.where, prompt=True)

    def _completion_text(self, record: Record, index: int, content: str) -> str:
        """What rendering turn ``index`` adds to its prompt, up to the end of the turn."""
        prompt = self._prompt_text(record, index)
        whole = self._render([*record.messages[:index], Message("assistant", content)], where=record.where)
        if not whole.startswith(prompt):
            raise ModelError(
                f"{record.where}: the chat template of {self.tokenizer.name_or_path} renders the prompt of "
                f"messages[{index}] differently once it is answered, so that what is trained would not be what is "
                "asked. Give prompt/completion rows, or a template whose generation prompt is how an answer begins."
            )
        added = whole[len(prompt) :]
        end = added.rfind(self._turn_end_text) if self._turn_end_text else -1
        return added if end < 0 else added[: end + len(self._turn_end_text)]

    def _chat_completion_ids(self, prompt: str, completion: str) -> list[int]:
        ids = self._after(prompt, completion)
        return ids if ids[-1:] in ([self.eos_id], [self._turn_end_id]) else [*ids, self.eos_id]

    def _between(self, record: Record, previous: int, index: int, done: str) -> str:
        """What stands between the end of trained turn ``previous`` and turn ``index``.

        Args:
            record: The row.
            previous: Message index of a trained turn.
            index: Message index of the next one.
            done: What has been rendered so far, turn ``previous`` included.
        """
        prompt = self._prompt_text(record, index)
        if prompt.startswith(done):
            return prompt[len(done) :]
        # The template rewrites turns that are no longer the last: see what follows one whose content is a placeholder.
        messages = list(record.messages[:index])
        messages[previous] = Message("assistant", PLACEHOLDER)
        _, found, rest = self._render(messages, where=record.where, prompt=True).partition(PLACEHOLDER)
        if not found or not rest.startswith(self._turn_end_text):
            raise ModelError(
                f"{record.where}: the chat template of {self.tokenizer.name_or_path} rewrites messages[{previous}] "
                "when the conversation goes on, so that it cannot be trained in one pass. Set its weight to 0, or end "
                "the conversation there."
            )
        return rest[len(self._turn_end_text) :]

    @cached_property
    def _turn_end_text(self) -> str:
        """The special token that the template puts after an assistant's content; empty where there is none."""
        probe = [Message("user", "ANTIBODY-QUESTION"), Message("assistant", PLACEHOLDER)]
        rendered = self._render(probe, where="a probe of the chat template")
        if any(message.content not in rendered for message in probe):  # those of vision models want lists of parts
            raise ModelError(
                f"the chat template of {self.tokenizer.name_or_path} does not render a message's content that is plain "
                "text. Give prompt/completion rows, or use another template."
            )
        after = rendered.partition(PLACEHOLDER)[2]
        special = {str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        found = [(after.find(token), token) for token in special if token in after]
        return min(found, key=lambda hit: (hit[0], -len(hit[1])))[1] if found else ""

    @cached_property
    def _turn_end_id(self) -> int | None:
        return self._ids(self._turn_end_text)[0] if self._turn_end_text else None

    def _render(self, messages: Sequence[Message], *, where: str, prompt: bool = False) -> str:
        if not self.tokenizer.chat_template:
            raise ModelError(
                f"the tokenizer of {self.tokenizer.name_or_path} has no chat template, and {where} is a chat. Give "
                "prompt/completion rows, or put a chat_template.jinja into the model's folder."
            )
        chat = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return str(self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt))
        except (TemplateError, TypeError, ValueError) as error:  # what templates raise on rows they do not take
            raise DataError(
                f"{where}: the chat template of {self.tokenizer.name_or_path} refuses the messages ({error}). "
                "Change their roles or order, or use another template."
            ) from error

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _after(self, context: str, text: str) -> list[int]:
        """Ids of ``text`` where it stands after ``context``, whose ids stay as they are."""
        context_ids, joint = self._ids(context), self._ids(context + text)
        return joint[len(context_ids) :] if joint[: len(context_ids)] == context_ids else self._ids(text)


def encode_rows(records: Sequence[Record], renderer: Renderer, *, skip_too_long: bool) -> EncodedRows:
    """All rows as tokens; those longer than ``renderer.max_length`` are left out and told, if that is asked for.

    Raises:
        DataError: a row is too long and ``skip_too_long`` is False (names the first lines), or none is left.
    """
    if not records:
        raise DataError("there is no row to encode. Give at least one.")
    encoded = [(record, renderer.encode(record)) for record in records]
    too_long = [
        (record.line, len(row.input_ids)) for record, row in encoded if len(row.input_ids) > renderer.max_length
    ]
    rows = [row for _, row in encoded if len(row.input_ids) <= renderer.max_length]
    if too_long and (not skip_too_long or not rows):
        shown = ", ".join(f"line {line} ({num} tokens)" for line, num in too_long[:NUM_ROWS_SHOWN])
        more = f" and {len(too_long) - NUM_ROWS_SHOWN} more" if len(too_long) > NUM_ROWS_SHOWN else ""
        mend = "Shorten them" + (", raise the limit" if skip_too_long else ", or leave them out with --skip-too-long")
        raise DataError(
            f"{records[0].source}: {len(too_long)} of {len(records)} rows are longer than {renderer.max_length} "
            f"tokens: {shown}{more}. {mend}."
        )
    return EncodedRows(rows, too_long)


def _trained_turns(record: Record) -> list[int]:
    return [index for index, message in enumerate(record.messages) if message.role == "assistant" and message.trained]
