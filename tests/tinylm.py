"""A random two-layer Llama and random rows: for tests of arithmetic, where no text is needed."""

from collections.abc import Iterator

import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from antibody_llm.data.records import Template, TokenizedRow
from antibody_llm.likelihood.microbatch import MicroBatch, StepBatch
from antibody_llm.likelihood.refusals import Refusals
from antibody_llm.training.batches import Grid
from antibody_llm.training.step import StepContext

VOCAB = 64


def tiny_llama(seed: int = 0, **overrides: object) -> PreTrainedModel:
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,  # so that likelihoods differ visibly
    } | overrides
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(LlamaConfig(**settings), dtype=torch.float32)


def random_rows(num: int, seed: int = 0, *, num_turns: int = 1, longest: int = 10) -> list[TokenizedRow]:
    generator = torch.Generator().manual_seed(seed)

    def some(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCAB, (n,), generator=generator).tolist())

    rows = []
    for row_id in range(num):
        ids: tuple[int, ...] = ()
        spans = []
        for _ in range(num_turns):
            prompt, completion = tokens(some(2, longest)), (*tokens(some(1, longest)), 2)
            ids += prompt
            spans.append((len(ids), len(ids) + len(completion)))
            ids += completion
        rows.append(TokenizedRow(row_id, ids, tuple(spans), Template.TEXT))
    return rows


def random_refusals(num: int = 5, seed: int = 7) -> Refusals:
    ids = tuple(row.input_ids for row in random_rows(num, seed, longest=5))
    return Refusals(tuple(f"refusal {i}" for i in range(num)), {Template.TEXT: ids})


def tick(context: StepContext, **clock: float) -> None:
    """Set the clock of a context as its trainer would: ``step``, ``max_steps``, ``learning_rate``..."""
    for name, value in clock.items():
        setattr(context._clock, name, value)


def ticks(context: StepContext, num: int) -> Iterator[int]:
    """Steps 0 to ``num`` - 1, each set on the clock of a context."""
    for number in range(num):
        tick(context, step=number)
        yield number


micro = MicroBatch.of


def step(rows: list[TokenizedRow], micro_batch_size: int | None = None) -> StepBatch:
    """All rows as one step, cut into micro-batches on one rank."""
    size = micro_batch_size or len(rows)
    micro_batches = [
        MicroBatch(tuple(rows[p] for p, _ in cut), tuple(c for _, c in cut), tuple(p for p, _ in cut))
        for cut in Grid(size).cut(len(rows))
    ]
    return StepBatch(tuple(micro_batches), len(rows))


def plain_nll(model: torch.nn.Module, ids: tuple[int, ...], start: int, end: int) -> torch.Tensor:
    """NLL in nats of ids[start:end] given what precedes, one row at a time, no padding, no cache, no helper of ours."""
    logits = model(input_ids=torch.tensor([ids[:end]])).logits[0]
    return F.cross_entropy(logits[start - 1 : end - 1].float(), torch.tensor(ids[start:end]), reduction="sum")


def tiny_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"t{i}": i for i in range(3, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="t3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
