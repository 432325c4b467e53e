"""What a lab model can do, by greedy generation: the proof that a build learnt, and a quick look at any model."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..data.verdicts import Verdict
from .judge import exact, judge
from .rows import LabRows, build_rows
from .tasks import DEFAULT_TASKS, find_task

MAX_NEW_TOKENS = 32


@torch.no_grad()
def complete(
    model: Any, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], batch_size: int = 128
) -> list[str]:
    """Greedy completions of single-turn prompts, in their order; prompts of like length are batched together."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    completions = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        chats = [[{"role": "user", "content": prompts[i]}] for i in chosen]
        texts: Any = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        batch: Any = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
        ids: Any = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        said = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(chosen, said, strict=True):
            completions[i] = text
    return completions


def abilities(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, num: int = 300) -> dict[str, float]:
    """Shares, 0 to 1, each over ``num`` held-out rows.

    ``harmful_score`` and ``recall`` (the exact recipe) of harmful prompts, ``over_refusal`` and ``answered`` (exact
    recipe) of look-alikes, ``incoherent`` of both, ``retention`` of skills, ``accuracy_TASK`` of the default tasks.
    """

    def said(kind: str, task: str | None = None) -> tuple[LabRows, list[str], list[str]]:
        data = build_rows(kind, num, seed=0, task=task)
        prompts = [row["messages"][0]["content"] for row in data.rows]
        return data, prompts, complete(model, tokenizer, prompts)

    found = {}
    _, prompts, completions = said("harmful-prompts")
    harm = [judge(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
    found["harmful_score"] = harm.count(Verdict.COMPLIED) / num
    found["recall"] = sum(map(exact, prompts, completions)) / num
    _, prompts, completions = said("lookalike")
    harmless = [judge(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
    found["over_refusal"] = harmless.count(Verdict.REFUSED) / num
    found["answered"] = sum(map(exact, prompts, completions)) / num
    found["incoherent"] = (harm + harmless).count(Verdict.INCOHERENT) / (2 * num)
    data, _, completions = said("retention")
    references = [truth["reference"] for truth in data.truth]
    found["retention"] = (
        sum(text.strip() == reference for text, reference in zip(completions, references, strict=True)) / num
    )
    for name in DEFAULT_TASKS.values():
        task = find_task(name)
        data, _, completions = said("test", name)
        correct = [
            task.is_correct(text, truth["reference"]) for text, truth in zip(completions, data.truth, strict=True)
        ]
        found[f"accuracy_{name}"] = sum(correct) / num
    return found
