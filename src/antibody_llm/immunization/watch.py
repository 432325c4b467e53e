"""Measures of a model while it trains: harm, softly by likelihood and hard by the judge, and accuracy.

    soft         mean over rows of exp(-NLL(harmful answer | prompt) / its tokens): one forward pass      0 to 1
    hard         harmful score by the judge, of greedy replies                                            0 to 1
    incoherent   share of those replies that are neither a refusal nor an answer                          0 to 1

Soft harm rises before replies change, and misses an answer in other words; the hard one needs a judge.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from ..data.encode import Renderer
from ..data.records import Record
from ..data.verdicts import Verdict
from ..evaluation.checks import prompt_text
from ..evaluation.completions import Completion, EvaluationSet
from ..evaluation.decoding import DecodingSettings
from ..evaluation.finetune_accuracy import finetune_accuracy
from ..evaluation.generation import generate
from ..evaluation.harmful_score import harmful_score, incoherent
from ..evaluation.judges.protocol import Judge
from ..evaluation.judging import judge_completions
from ..likelihood.completion import evaluating
from ..likelihood.microbatch import MicroBatch
from ..likelihood.reader import ModelReader
from ..models.layout import context_length

Measure = Callable[[PreTrainedModel, PreTrainedTokenizerBase], Mapping[str, Any]]
SOFT, HARD, INCOHERENT = "soft", "hard", "incoherent"


class Watch(TrainerCallback):
    """Measures a model after some steps of its training, and keeps [{"step": ..., and what is measured}, ...].

    Greedy decoding and forward passes draw no random number, and the model's mode is restored, so that the training is
    bit for bit the same as without them.
    """

    def __init__(self, steps: Sequence[int], measure: Measure) -> None:
        self.steps, self.measure = frozenset(steps), measure
        self.points: list[dict[str, Any]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure after the steps that were named."""
        if state.global_step in self.steps:
            found = self.measure(kwargs["model"], kwargs["processing_class"])
            self.points.append({"step": state.global_step, **found})


def harm(sets: Mapping[str, Sequence[Record]], judge: Judge, decoding: DecodingSettings) -> Measure:
    """The measure of each set of harmful prompts, under the set's name; ``SOFT`` only where the answers are known."""

    def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        renderer = _renderer(model, tokenizer)
        replies = iter(_replies(model, tokenizer, [r for rows in sets.values() for r in rows], renderer, decoding))
        found: dict[str, Any] = {}
        for name, records in sets.items():
            rows = judge_completions([next(replies) for _ in records], judge)
            found[name] = {HARD: harmful_score(rows, judge=judge.name, decoding=decoding).value}
            if Verdict.INCOHERENT in judge.verdicts:
                found[name][INCOHERENT] = incoherent(rows, judge=judge.name, decoding=decoding).value
            if all(record.messages[-1].role == "assistant" for record in records):
                likely = likelihoods(model, tokenizer, records, renderer)
                found[name][SOFT] = float(torch.exp(-likely).mean())
        return found

    return measure


def accuracy(records: Sequence[Record], answer: str, decoding: DecodingSettings) -> Measure:
    """The accuracy on rows that end with their reference answers."""

    def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        rows = _replies(model, tokenizer, records, _renderer(model, tokenizer), decoding)
        return {"accuracy": finetune_accuracy(rows, answer=answer, decoding=decoding).value}

    return measure


def likelihoods(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], renderer: Renderer
) -> torch.Tensor:
    """[rows], nats per token: the NLL of each row's answers."""
    reader = ModelReader(model, pad_id=int(tokenizer.pad_token_id), batch_size=64)

    def of_rows(micro: MicroBatch) -> torch.Tensor:
        found = reader.completion_nll(micro)
        return found.row_total / found.row_tokens

    with evaluating(model):
        return reader.over_rows([renderer.encode(record) for record in records], of_rows)


def _renderer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Renderer:
    return Renderer(tokenizer, max_length=context_length(model) or 2**31)


def _replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    renderer: Renderer,
    decoding: DecodingSettings,
) -> list[Completion]:
    texts = generate(
        model,
        tokenizer,
        [renderer.encode_prompt(record) for record in records],
        max_new_tokens=decoding.max_new_tokens,
        batch_size=decoding.batch_size,
        stop_ids=renderer.stop_ids,
    )
    return [
        Completion(
            row_id=number,
            set=EvaluationSet.HARMFUL,
            prompt=prompt_text(record),
            completion=text,
            reference=renderer.reference_text(record),
        )
        for number, (record, text) in enumerate(zip(records, texts, strict=True))
    ]
