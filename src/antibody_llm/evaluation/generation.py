"""Batched generation whose text does not depend on the batch.

Prompts are sorted by length (the longest first, so that a batch that does not fit fails at once), padded on the left
and decoded together; the order of the answer is the order of the question. A draw at temperature T is

    argmax_v  logits_v / T + G_v,      G_v = -log(-log u_v),  u_v uniform on (0, 1)                     (Gumbel-max)

which is distributed as softmax(logits / T). The u are seeded by (seed, position of the prompt), so that neither batch
size nor order changes them, and the process's own random state is left alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..errors import EvaluationError, ModelError
from ..events import report_progress
from ..mentions import setting
from ..models.layout import context_length
from ..text import counted


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    where: Sequence[str] | None = None,
    label: str = "generating",
) -> list[str]:
    """One completion for each prompt.

    Only what is given here counts: the model's own ``generation_config`` (temperature, top-p, repetition penalty) is
    not used, except for the tokens at which it ends.

    Args:
        model: A causal language model or a PEFT model; unchanged afterwards, the mode of each module included.
        tokenizer: Its tokenizer; its padding side does not matter.
        prompts: Token ids, rendered with whatever ends a prompt (generation prompt of the chat template).
        max_new_tokens: Most tokens per completion.
        batch_size: Prompts decoded together.
        temperature: 0 is greedy.
        seed: Seed of the draws at a temperature above 0.
        stop_ids: Tokens that end a completion beside the tokenizer's and the model's own, such as the chat template's
            end of a turn (``Renderer.stop_ids``).
        where: What an error calls each prompt, such as ``rows.jsonl, line 3``; its position unless given.
        label: What its progress is called.

    Returns:
        Texts in the order of ``prompts``: up to the first end token, special tokens and surrounding whitespace removed.

    Raises:
        EvaluationError: A prompt is empty, or does not fit the model's context together with ``max_new_tokens``; or a
            batch does not fit the device's memory.
        ModelError: No end-of-sequence token is known, so that no completion could end.
        Stopped: Who listens asked for it; asked after every batch.
    """
    names = [f"prompt {i}, counted from 0" for i in range(len(prompts))] if where is None else where
    _check_lengths(model, prompts, names, max_new_tokens)
    end_ids = end_token_ids(model, tokenizer, stop_ids)
    config = plain_greedy(end_ids, pad_id=_pad_id(tokenizer, end_ids), max_new_tokens=max_new_tokens)
    longest_first = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    texts = [""] * len(prompts)
    # No inference_mode: a buffer made in it (dynamic RoPE) could not be used in a later training step. generate()
    # itself runs under no_grad.
    with _evaluating(model):
        for start in range(0, len(prompts), batch_size):
            report_progress(label, start, len(prompts))
            rows = longest_first[start : start + batch_size]
            noise = [GumbelNoise(rows, temperature=temperature, seed=seed)] if temperature > 0 else []
            for i, ids in zip(rows, _continued(model, [prompts[i] for i in rows], config, noise), strict=True):
                texts[i] = _text(tokenizer, ids, end_ids)
        if prompts:
            report_progress(label, len(prompts), len(prompts))
    return texts


def _continued(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    processors: Sequence[LogitsProcessor],
) -> list[list[int]]:
    """The ids that the model appends to each prompt, all of one batch.

    Raises:
        EvaluationError: the batch does not fit the device's memory.
    """
    input_ids, attention_mask = left_padded(prompts, config.pad_token_id)
    width, device = input_ids.shape[1], next(model.parameters()).device
    try:
        output = model.generate(  # type: ignore[operator]
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            generation_config=config,
            logits_processor=LogitsProcessorList(processors),
        )
    except torch.OutOfMemoryError as error:
        raise EvaluationError(
            f"{counted(len(prompts), 'prompt')} of up to {width} tokens and {config.max_new_tokens} new ones do not "
            f"fit the device's memory. Lower {setting('batch_size')} or {setting('max_new_tokens')}."
        ) from error
    ids: list[list[int]] = output[:, width:].tolist()
    return ids


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Input ids and attention mask, [B, T] int64 each, with every prompt's last token in the last column."""
    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros((len(prompts), width), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.int64)
        attention_mask[row, width - len(prompt) :] = 1
    return input_ids, attention_mask


def end_token_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int] = ()
) -> list[int]:
    """Every token at which a completion ends: the tokenizer's, those of the model's generation config, and these."""
    ends = [*stop_ids, tokenizer.eos_token_id]
    of_model = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends += of_model if isinstance(of_model, list) else [of_model]
    known = sorted({end for end in ends if end is not None})
    if not known:
        raise ModelError(
            "neither the tokenizer nor the model's generation config names an end-of-sequence token, so no completion "
            "could end. Set eos_token in the tokenizer's folder."
        )
    return known


class GumbelNoise(LogitsProcessor):
    """Turns greedy decoding into sampling at a temperature (see the module's head); one random stream per prompt."""

    def __init__(self, rows: Sequence[int], *, temperature: float, seed: int) -> None:
        self.temperature = temperature
        # Mixed with a large odd number, so that (seed 0, row 1) and (seed 1, row 0) are different streams.
        self.streams = [torch.Generator().manual_seed((seed * 1_000_003 + row) % 2**63) for row in rows]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``scores``: [B, V] logits of the next token."""
        # On the CPU and in double precision whatever the model runs on: the same draw on every device, and no u of 0.
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=s, dtype=torch.float64) for s in self.streams])
        gumbel = -torch.log(-torch.log(uniform.clamp(min=1e-300)))
        return scores.float() / self.temperature + gumbel.to(scores.device, torch.float32)


def plain_greedy(end_ids: list[int], *, pad_id: int, max_new_tokens: int) -> GenerationConfig:
    """Greedy decoding with nothing left to the model's own generation config, which fills in whatever is None."""
    defaults = {k: v for k, v in GenerationConfig._get_default_generation_params().items() if k != "max_length"}
    outputs = dict.fromkeys((*GenerationConfig.extra_output_flags, "return_dict_in_generate"), False)
    return GenerationConfig(
        **{**defaults, **outputs, "do_sample": False, "use_cache": True},
        max_new_tokens=max_new_tokens,
        eos_token_id=end_ids,
        pad_token_id=pad_id,
    )


def _pad_id(tokenizer: PreTrainedTokenizerBase, end_ids: list[int]) -> int:
    """The id of padding: any will do, since the mask hides it; the tokenizer's own where it has one."""
    return end_ids[0] if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int], end_ids: list[int]) -> str:
    end = next((position for position, token in enumerate(ids) if token in end_ids), len(ids))
    text = tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)  # a single sequence decodes to a single text
    return text.strip()


def _check_lengths(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], names: Sequence[str], max_new_tokens: int
) -> None:
    empty = [i for i, prompt in enumerate(prompts) if not prompt]
    if empty:
        raise EvaluationError(
            f"{len(empty)} of {len(prompts)} prompts have no tokens (first: {names[empty[0]]}). Remove those rows, or "
            "render them with a template."
        )
    context = context_length(model)
    if context is None:
        return
    over = [i for i, prompt in enumerate(prompts) if len(prompt) + max_new_tokens > context]
    if over:
        raise EvaluationError(
            f"{len(over)} of {len(prompts)} prompts do not fit the model's context of {context} tokens together with "
            f"{max_new_tokens} new ones (first: {names[over[0]]}, of {len(prompts[over[0]])} tokens). Lower "
            f"{setting('max_new_tokens')}, or shorten or remove those rows."
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, no dropout and no gradient checkpointing (which would turn the cache off); each mode is restored."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True  # not .train(), which would also reach children that were in eval mode
