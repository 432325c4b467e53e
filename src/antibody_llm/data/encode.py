"""Rows as tokens, so that a completion is trained after exactly the ids that precede it at inference.

Content is text: nothing that a row says becomes a control token, and what the template itself writes does (control.py).

A prompt is encoded on its own, as inference does, and the completion's ids are appended. Where encoding both in one
go leaves the prompt's ids as they are, the completion's ids are taken from there, since a SentencePiece tokenizer
marks the beginning of a text; elsewhere the completion is encoded on its own.

Chat rows. ``render(messages[:k], prompt=True)`` is the prompt of turn k, and what ``render(messages[:k + 1])`` adds to
it is the completion, up to and including the token that ends a turn: the first control token that the template puts
after an assistant's content, or else an end-of-sequence token that is appended. An empty block of thinking that the
template puts before an answer without thinking is not trained. A template that rewrites earlier turns (Qwen3 strips
their thinking) has every trained turn rendered as if it were the last one, and what follows it is taken from the later
rendering.

Text rows are ids(prompt) with the special tokens that the tokenizer itself puts in front, ids(completion), end of
sequence. Nothing is ever put in front twice.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from ..errors import DataError, ModelError
from ..mentions import setting
from .control import GUARD, ControlTokens
from .problems import BadRow, report
from .records import Message, Record, Template, TokenizedRow
from .template import ChatTemplate, thinking_apart

_T = TypeVar("_T")
NUM_ROWS_SHOWN = 5
ALPACA_MARKS = ("### Instruction:", "### Input:", "### Response:")
"""Marks of the Alpaca prompt, which are plain text."""


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Rows that fit, and (line, number of tokens) of those that do not."""

    rows: list[TokenizedRow]
    too_long: list[tuple[int, int]]


class RowError(DataError):
    """A row cannot be rendered; ``problem`` is what a report over many rows needs of it."""

    def __init__(self, record: Record, problem: BadRow) -> None:
        super().__init__(str(report(record.source, [(record.line, problem)])))
        self.problem = problem


class TooLong(DataError):
    """Rows do not fit into the renderer's limit, and are not to be left out."""


class Renderer:
    """Renders rows with one tokenizer.

    Raises:
        ModelError: the tokenizer has no end-of-sequence token, or no chat template where a row is a chat; or its
            template is no use.
        RowError: the chat template refuses a row, or would leave a part of it out (names file, line and field).
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
        self.control = ControlTokens(tokenizer)
        self._checked = False
        self._last: tuple[str, list[int]] = ("", [])

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
            prompt_text = self._prompt_text(record, index)
            between = prompt_text if previous is None else self._between(record, previous, index, prompt_text, done)
            context = "" if previous is None else self._end_of(record.messages[previous])
            ids += self._after(context, between) if context else self._ids(between)
            start = len(ids)
            completion_text = self._completion_text(record, index, record.messages[index], prompt_text)
            ids += self._chat_completion_ids(between, completion_text, record.messages[index])
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
        return self._answer_ids(record, index, Message("assistant", text))

    def reference_text(self, record: Record) -> str | None:
        """What a model that has learnt the row's last turn generates; None where the row ends otherwise.

        A turn that calls tools reads as the template writes the calls.
        """
        last = record.messages[-1]
        if last.role != "assistant" or not last.tool_calls:
            return last.content if last.role == "assistant" else None
        ids = self._answer_ids(record, len(record.messages) - 1, last)
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()

    def spelled(self, record: Record) -> str | None:
        """The first control token or plain-text mark of a template that the row's texts spell, of whatever model."""
        for text in _texts(record):
            if (found := self.control.spelled_in(text)) is not None:
                return found
        if record.template is Template.TEXT:
            return next((mark for mark in ALPACA_MARKS if _spells_alpaca(record, mark)), None)
        marks = (
            self.template.habits.plain_marks if self.tokenizer.chat_template else ()
        )  # `encode` says what is missing
        return next((mark for text in _texts(record) for mark in marks if mark in text), None)

    @cached_property
    def template(self) -> ChatTemplate:
        """The tokenizer's chat template, asked safely."""
        return ChatTemplate(self.tokenizer, self.control)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens at which generation ends: end of sequence, and the template's ends of a turn where they differ."""
        ends = (self.template.habits.turn_end, self.template.habits.call_end) if self.tokenizer.chat_template else ()
        ids = (self.control.id_of(end) for end in ends if end)
        return tuple(dict.fromkeys((self.eos_id, *ids)))

    # Text rows.

    def _text_prompt_ids(self, prompt: str, completion: str = "") -> list[int]:
        text = self.control.guarded(prompt) + self.control.guarded(completion)
        ids = self._ids(text, add_special_tokens=True)
        while ids and ids[-1] == self.eos_id:  # some tokenizers also end what they encode
            ids.pop()
        return ids

    def _text_completion_ids(self, prompt: str, completion: str) -> list[int]:
        prompt_ids, joint = self._text_prompt_ids(prompt), self._text_prompt_ids(prompt, completion)
        fits = joint[: len(prompt_ids)] == prompt_ids
        return [*(joint[len(prompt_ids) :] if fits else self._ids(self.control.guarded(completion))), self.eos_id]

    # Chat rows.

    def _prompt_text(self, record: Record, index: int) -> str:
        return self._render(record, record.messages[:index], prompt=True)

    def _answer_ids(self, record: Record, index: int, answer: Message) -> list[int]:
        prompt = self._prompt_text(record, index)
        return self._chat_completion_ids(prompt, self._completion_text(record, index, answer, prompt), answer)

    def _completion_text(self, record: Record, index: int, answer: Message, prompt: str) -> str:
        """What rendering ``answer`` as turn ``index`` adds to its prompt, up to the end of the turn."""
        whole = self._render(record, [*record.messages[:index], answer])
        if not whole.startswith(prompt):
            raise ModelError(
                f"{record.where}: the chat template of {self.tokenizer.name_or_path} renders the prompt of "
                f"messages[{index}] differently once it is answered, so that what is trained would not be what is "
                "asked. Give prompt/completion rows, or a template whose generation prompt is how an answer begins."
            )
        added = whole[len(prompt) :]
        if not answer.reasoning and thinking_apart(answer.content) is None:
            added = added.removeprefix(self.template.habits.empty_thought)
        return added[: self.template.habits.end_of_turn(added, calls=bool(answer.tool_calls))]

    def _end_of(self, answer: Message) -> str:
        return self.template.habits.call_end if answer.tool_calls else self.template.habits.turn_end

    def _chat_completion_ids(self, prompt: str, completion: str, answer: Message) -> list[int]:
        ids = self._after(prompt, completion)
        ended = completion.endswith(self._end_of(answer) or "\0") or ids[-1:] == [self.eos_id]
        return ids if ended else [*ids, self.eos_id]

    def _between(self, record: Record, previous: int, index: int, prompt: str, done: str) -> str:
        """The text between the end of trained turn ``previous`` and turn ``index``.

        Args:
            record: The row.
            previous: Message index of a trained turn.
            index: Message index of the next one.
            prompt: The rendered prompt of turn ``index``.
            done: What has been rendered so far, turn ``previous`` included.
        """
        if prompt.startswith(done):
            return prompt[len(done) :]
        # The template rewrites turns that are no longer the last: see what follows one whose content is a placeholder.
        turn_end = self._end_of(record.messages[previous])
        before, after = record.messages[:previous], record.messages[previous + 1 : index]
        rest = self._named(record, lambda: self.template.text_after_turn(before, after, record.tools))
        if rest is None or not rest.startswith(turn_end):
            raise ModelError(
                f"{record.where}: the chat template of {self.tokenizer.name_or_path} rewrites messages[{previous}] "
                "when the conversation goes on, so that it cannot be trained in one pass. Set its weight to 0, or end "
                "the conversation there."
            )
        return rest[len(turn_end) :]

    def _render(self, record: Record, messages: Sequence[Message], *, prompt: bool = False) -> str:
        if not self.tokenizer.chat_template:
            raise ModelError(
                f"the tokenizer of {self.tokenizer.name_or_path} has no chat template, and {record.where} is a chat. "
                "Give prompt/completion rows, or put a chat_template.jinja into the model's folder."
            )
        return self._named(record, lambda: self.template.render(messages, record.tools, prompt=prompt))

    def _named(self, record: Record, render: Callable[[], _T]) -> _T:
        try:
            return render()
        except BadRow as problem:
            raise RowError(record, problem) from None

    def _ids(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        if GUARD not in text:
            if add_special_tokens:
                return self._tokenized(text, add_special_tokens=True)
            if self._last[0] != text:  # a prompt comes once by itself and once as its completion's context
                self._last = text, self._tokenized(text, add_special_tokens=False)
            return list(self._last[1])
        if not self._checked:
            self.control.check(
                self.template.habits.example if self.tokenizer.chat_template else "A question? An answer."
            )
            self._checked = True
        return self.control.encode(text, add_special_tokens=add_special_tokens)

    def _tokenized(self, text: str, *, add_special_tokens: bool) -> list[int]:
        try:
            return list(self.tokenizer(text, add_special_tokens=add_special_tokens).input_ids)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # what the tokenizers library raises where it gives up
                raise
            raise ModelError(
                f"the tokenizer of {self.tokenizer.name_or_path} breaks down on a row ({str(error)[:200]}). Its "
                "tokenizer.json contradicts itself; use the original one."
            ) from None

    def _after(self, context: str, text: str) -> list[int]:
        """Ids of ``text`` behind ``context``, whose ids stay as they are."""
        context_ids, joint = self._ids(context), self._ids(context + text)
        return joint[len(context_ids) :] if joint[: len(context_ids)] == context_ids else self._ids(text)


def encode_rows(
    records: Sequence[Record], renderer: Renderer, *, skip_too_long: bool, refusal_tokens: int = 0
) -> EncodedRows:
    """All rows as tokens; those longer than ``renderer.max_length`` are left out and reported, if that is asked for.

    Args:
        records: The rows of one source, at least one.
        renderer: Encodes the rows; has the limit of their length.
        skip_too_long: Leave rows out that do not fit, instead of stopping.
        refusal_tokens: Tokens of the longest refusal that will be scored in place of an answer; it must fit as well.

    Raises:
        DataError: the template refuses rows (names all lines).
        TooLong: a row is too long and ``skip_too_long`` is False (names the first lines), or none is left.
    """
    if not records:
        raise DataError("there is no row to encode. Give at least one.")
    encoded: list[tuple[Record, TokenizedRow]] = []
    refused: list[tuple[int, BadRow]] = []
    for record in records:
        try:
            encoded.append((record, renderer.encode(record)))
        except RowError as error:
            refused.append((record.line, error.problem))
    if refused:
        raise report(records[0].source, refused)
    sizes = [max(len(row.input_ids), row.spans[-1][0] + refusal_tokens) for _, row in encoded]
    too_long = [
        (record.line, size) for (record, _), size in zip(encoded, sizes, strict=True) if size > renderer.max_length
    ]
    rows = [row for (_, row), size in zip(encoded, sizes, strict=True) if size <= renderer.max_length]
    if too_long and (not skip_too_long or not rows):
        shown = ", ".join(f"line {line} ({num} tokens)" for line, num in too_long[:NUM_ROWS_SHOWN])
        more = f" and {len(too_long) - NUM_ROWS_SHOWN} more" if len(too_long) > NUM_ROWS_SHOWN else ""
        counted = f" (a refusal of {refusal_tokens} tokens in place of an answer counted)" if refusal_tokens else ""
        leave_out = f", or leave them out with {setting('skip_too_long', 'True')}"
        fix = "Shorten them" + (", raise the limit" if skip_too_long else leave_out)
        raise TooLong(
            f"{records[0].source}: {len(too_long)} of {len(records)} rows are longer than {renderer.max_length} "
            f"tokens{counted}: {shown}{more}. {fix}."
        )
    return EncodedRows(rows, too_long)


def _trained_turns(record: Record) -> list[int]:
    return [index for index, message in enumerate(record.messages) if message.role == "assistant" and message.trained]


def _texts(record: Record) -> Iterator[str]:
    """Every text of a row that reaches the model."""
    for message in record.messages:
        apart = thinking_apart(message.content) if message.role == "assistant" else None
        yield from apart or (message.content,)
        yield message.reasoning
        for call in message.tool_calls:
            yield from (call.name, call.arguments, call.call_id)
        yield from (message.tool_call_id, message.name)
    yield record.tools


def _spells_alpaca(record: Record, mark: str) -> bool:
    prompt, *completion = (message.content for message in record.messages)
    return any(mark in text for text in completion) or prompt.count(mark) > 1
