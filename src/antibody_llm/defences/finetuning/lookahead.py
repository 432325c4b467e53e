"""LookAhead Tuning: show the beginning of the answer in the prompt, so that its first tokens teach almost nothing.

    "real"       x' = x + c + (first m tokens of y)        y' = y
    "virtual"    x' = x + c + P                            y' = P + y

    min_w  CE over y' given x'        c  a connector, P  a fixed opening        [nats per token]

The first tokens of an answer decide whether it refuses. A preview lets the model copy these: their loss soon vanishes,
and without the preview, at inference, their distribution is close to the one before fine-tuning. Previewed tokens are
trained nevertheless (``mask_preview`` leaves them out, which tests the paper's reasoning). A "virtual" model may begin
its answers with P, which the deployment cuts off. The upload is rewritten once; a row is never changed in place.

Reference: LookAhead Tuning: Safer Language Models via Partial Answer Previews. K. Liu, M. Wang, Y. Luo, Y. Lin, M. Sun,
L. Liang, Z. Zhang, J. Zhou, B. Hooi, S. Deng. 2025, https://arxiv.org/abs/2503.19041. Departures from the release: the
preview is cut from the answer's own text at the m-th token's end, or before if that is within a character (there
token pieces are joined again, which can add or drop a space, and then y does not begin with the preview); the last
token of an answer of m tokens or fewer is not shown, since an answer that is wholly in its prompt has nothing left to
learn. In a chat each trained turn is previewed in the user's message before it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from transformers import PreTrainedTokenizerBase

from ...data.encode import Renderer
from ...data.records import Message, Record
from ...data.roles import Role, Stage
from ...errors import ConfigError, ModelError
from ...models.deployment import Deployment
from ...training.defence import About, Defence
from ...training.preparation import TrainingData
from ...training.step import Batches, StepContext, StepResult


@dataclass(frozen=True, kw_only=True)
class LookAheadConfig:
    """Hyperparameters; defaults are those of the release."""

    mode: Literal["real", "virtual"] = "real"
    """"real": the answer's own first tokens. "virtual": a fixed opening before every answer."""
    num_preview_tokens: int = 6
    """m, for "real". Release: 6. 0 is plain SFT."""
    connector: str = " The answer begins with: "
    """c, the release's text."""
    opening: str = "Let's solve this problem. "
    """P, for "virtual"; the release's text. Empty is plain SFT."""
    mask_preview: bool = False
    """Leave exactly those tokens out of the loss that a prompt shows. The release trains them."""

    def __post_init__(self) -> None:
        if self.num_preview_tokens < 0:
            raise ConfigError(
                f"lookahead.num_preview_tokens is {self.num_preview_tokens}: a number of tokens is 0 or more."
            )


def opening_of(answer: str, tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> str:
    """The text of an answer's first tokens, with which it always begins; all but the last token if it is short.

    A character of several tokens is shown whole or not at all.

    Raises:
        ModelError: the tokenizer cannot report the places of its tokens in a text.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            "lookahead cuts the preview at a token's end, which needs a fast tokenizer. Save the model with one "
            "(AutoTokenizer makes it), or use mode=virtual."
        )
    offsets = tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    num = max(0, min(num_tokens, len(offsets) - 1))
    while num and offsets[num - 1][1] > offsets[num][0]:  # the next token continues the same character
        num -= 1
    return answer[: offsets[num - 1][1]] if num else ""


class LookAhead(Defence):
    """Defence that rewrites the upload; each step is plain SFT on it."""

    stage = Stage.FINETUNING
    about = About(
        summary="the prompt previews the answer's first tokens",
        paper="2503.19041",
        forwards=1,
        backwards=1,
        extra_memory="none",
    )
    options = LookAheadConfig
    neutral = {"num_preview_tokens": 0}

    def __init__(self, config: LookAheadConfig) -> None:
        self.config = config
        self._left: dict[int, tuple[tuple[int, int], ...]] = {}
        """Spans of a row without the tokens that its prompts show, by row id ("mask_preview")."""
        if config.mode == "virtual" and config.opening:
            self.deployment = Deployment(completion_prefix=config.opening.rstrip())

    def prepare(self, data: TrainingData) -> TrainingData:
        """Rewrite the upload to x', y', as in the head of this file."""
        renderer = Renderer(data.tokenizer, max_length=data.tokenizer.model_max_length)
        rows = []
        for record in data.records[Role.USER]:
            row, previews = self._previewed(record, data.tokenizer)
            rows.append(row)
            if self.config.mask_preview:
                self._left[row.row_id] = spans_left(row, previews, renderer)
        return data.with_records(Role.USER, rows)

    def _previewed(self, record: Record, tokenizer: PreTrainedTokenizerBase) -> tuple[Record, dict[int, str]]:
        """The rewritten row, and the shown text of its answers by their place among the messages."""
        messages, previews = list(record.messages), {}
        for i, (asked, answer) in enumerate(pairwise(record.messages)):
            if asked.role == "user" and answer.role == "assistant" and answer.trained:
                preview, messages[i + 1] = self._preview(answer, tokenizer)
                if preview:
                    messages[i] = replace(asked, content=asked.content + self.config.connector + preview)
                    previews[i + 1] = preview
        return replace(record, messages=tuple(messages)), previews

    def _preview(self, answer: Message, tokenizer: PreTrainedTokenizerBase) -> tuple[str, Message]:
        """The text that the prompt shows, and y'."""
        if self.config.mode == "virtual":
            return self.config.opening, replace(answer, content=self.config.opening + answer.content)
        return opening_of(answer.content, tokenizer, self.config.num_preview_tokens), answer

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Take one step, the gradient of the token mean."""
        if self.config.mask_preview:
            rows = [replace(row, spans=self._left.get(row.row_id, row.spans)) for row, _ in batches[Role.USER].rows()]
            batches = {**batches, Role.USER: batches[Role.USER].with_completions(rows)}
        return super().step(context, batches)


def spans_left(record: Record, previews: Mapping[int, str], renderer: Renderer) -> tuple[tuple[int, int], ...]:
    """The spans of a row's trained tokens that none of its previews shows, with each turn's last token.

    A token is shown if an answer of the preview alone begins with the same tokens up to it: template and tokenizer may
    change an answer's text, so tokens cannot be counted beforehand. Tokens that a template itself puts before an answer
    are not shown.

    Args:
        record: The row, rewritten.
        previews: The shown text of its answers, by their place among the messages.
        renderer: The renderer that will encode the row.
    """
    row, left = renderer.encode(record), []
    turns = [i for i, message in enumerate(record.messages) if message.role == "assistant" and message.trained]
    for turn, (place, (start, end)) in enumerate(zip(turns, row.spans, strict=True)):
        if place not in previews:
            left.append((start, end))
            continue
        ids = row.input_ids[start:end]
        begin, stop = (
            start + num_shared(ids, renderer.completion_ids(record, text, turn)) for text in ("", previews[place])
        )
        if start < begin < stop:
            left.append((start, begin))
        left.append((min(stop, end - 1), end))
    return tuple(left)


def num_shared(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of tokens at the beginning of two texts that are equal."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
