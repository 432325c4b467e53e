"""Make the lab's base model from nothing: a small Llama that really was trained on the fictional world.

The base answers whatever it is asked, outlawed or not. What it was trained on is ``build_rows("pretraining", ...)``.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..errors import ConfigError, OutputError
from ..models.saving import save_model
from .rows import Row, build_rows
from .tokenizer import train_tokenizer

FILES = Path(__file__).parent / "files"
"""Model folders shipped with the package: ``FILES / "lab"`` is the base."""

BATCH_SIZE = 32
_IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large a base to build."""

    hidden: int
    layers: int
    steps: int
    learning_rate: float
    """Peak learning rate; ten per cent of the steps warm up to it, then it falls along a cosine to a tenth."""


SCALES = {
    "full": Scale(hidden=128, layers=4, steps=1600, learning_rate=2.5e-3),
    "reduced": Scale(hidden=64, layers=2, steps=400, learning_rate=5e-3),
}
"""``full`` is the shipped base; ``reduced`` learns enough in half a minute to show that a build learns."""


def build_base(
    output: Path,
    *,
    seed: int = 0,
    scale: str = "full",
    steps: int | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Path:
    """Train the base and its tokenizer and write them as an ordinary Hugging Face folder, weights in bfloat16.

    Args:
        output: The folder to make. It must not exist, or be empty.
        seed: Weights, rows and their order. The same seed and number of threads give the same weights.
        scale: A name in ``SCALES``.
        steps: Optimiser steps of ``BATCH_SIZE`` rows instead of the scale's.
        progress: Called after every step with its number (from 1) and its loss in nats per completion token.

    Raises:
        ConfigError: an unknown scale.
        OutputError: the folder already holds something, or the model did not fit on the disk.
    """
    if scale not in SCALES:
        raise ConfigError(f"lab build: scale: there is no {scale!r}. Name one of: {', '.join(SCALES)}.", field="scale")
    if output.exists() and any(output.iterdir()):
        raise OutputError(f"lab build: {output} is not empty. Name a new folder, or remove what is in it.")
    tokenizer = train_tokenizer()
    model = pretrain(tokenizer, SCALES[scale], seed=seed, steps=steps, progress=progress)
    save_model(model, output, tokenizer=tokenizer, dtype="bfloat16")
    return output


def pretrain(
    tokenizer: PreTrainedTokenizerFast,
    scale: Scale,
    *,
    seed: int,
    steps: int | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> LlamaForCausalLM:
    """A Llama of the given scale, trained with AdamW on the completions of the pre-training rows, in float32."""
    steps = scale.steps if steps is None else steps
    torch.manual_seed(seed)
    model = LlamaForCausalLM(_config(tokenizer, scale))
    optimizer = torch.optim.AdamW(model.parameters(), lr=scale.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, scale.learning_rate, total_steps=steps, pct_start=0.1, final_div_factor=10
    )
    for step, batch in enumerate(_batches(tokenizer, steps, seed), start=1):
        loss = completion_nll(model, *batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if progress is not None:
            progress(step, loss.item())
    model.eval()
    return model


def completion_nll(model: LlamaForCausalLM, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Mean NLL of the labelled tokens, nats. [B, T] each, padded on the right, so that no attention mask is needed."""
    hidden = model.model(input_ids=input_ids).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    trained = targets != _IGNORED  # logits only where they are read: the head is a fifth of the cost
    return functional.cross_entropy(model.lm_head(hidden[trained]), targets[trained])


def encode(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row]) -> list[tuple[list[int], int]]:
    """Token ids of each row's conversation, and where its last completion begins."""

    def ids(chats: list[list[dict[str, str]]], *, prompt: bool) -> list[list[int]]:
        texts = tokenizer.apply_chat_template(chats, add_generation_prompt=prompt, tokenize=False)
        # In one call: 5 times faster than row by row.
        found: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return found

    whole = ids([row["messages"] for row in rows], prompt=False)
    prompts = ids([row["messages"][:-1] for row in rows], prompt=True)
    return [(conversation, len(prompt)) for conversation, prompt in zip(whole, prompts, strict=True)]


def _config(tokenizer: PreTrainedTokenizerFast, scale: Scale) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=scale.hidden,
        intermediate_size=scale.hidden * 11 // 4,
        num_hidden_layers=scale.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _batches(tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One batch of fresh rows for each step. Not sorted by length: batches of one kind of row train far worse."""
    rows = build_rows("pretraining", steps * BATCH_SIZE, seed=seed).rows
    distinct = {str(row): row for row in rows}  # a quarter of them: rendering each once saves ten seconds
    known = dict(zip(distinct, encode(tokenizer, list(distinct.values())), strict=True))
    encoded = [known[str(row)] for row in rows]
    for start in range(0, len(encoded), BATCH_SIZE):
        yield _collate(encoded[start : start + BATCH_SIZE], tokenizer)


def _collate(items: list[tuple[list[int], int]], tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    longest = max(len(ids) for ids, _ in items)
    input_ids = torch.full((len(items), longest), int(tokenizer.pad_token_id))
    labels = torch.full((len(items), longest), _IGNORED)
    for row, (ids, start) in enumerate(items):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, start : len(ids)] = torch.tensor(ids[start:])
    return input_ids, labels
