"""Tiny folders of judges: a random classifier, and a model that always says the same."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from tests.tiny import make_tokenizer

GUARD_TEMPLATE = (
    "{{ bos_token }}<|user|> Policy: S1. Conversation: {% for m in messages %}"
    "{{ 'User' if m.role == 'user' else 'Agent' }}: {{ m.content | trim }} {% endfor %}"
    "Assess the last {{ 'Agent' if messages | length % 2 == 0 else 'User' }}. <|assistant|>"
)
PARTS_TEMPLATE = GUARD_TEMPLATE.replace("m.content | trim", "m.content[0].text | trim")


def saying_folder(folder: Path, answer: str, *, template: str | None = None, longest: int = 512) -> Path:
    """A Llama whose layers pass on the last token's embedding, and whose head answers with ``answer`` and the end."""
    vocab = {word: number for number, word in enumerate(["<unk>", "<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"])}
    size = 16
    vocab |= {answer: len(vocab)} | {f"word{n}": n for n in range(len(vocab) + 1, size)}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
    )
    tokenizer.chat_template = template
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=size,
            intermediate_size=4,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=longest,
            bos_token_id=2,
            eos_token_id=3,
            pad_token_id=1,
            tie_word_embeddings=False,
        )
    )
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        model.lm_head.weight[vocab[answer]] = 1.0
        model.lm_head.weight[vocab["</s>"], vocab[answer]] = 2.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def classifier_folder(folder: Path, *, num_labels: int = 14, seed: int = 0) -> Path:
    """A random Llama with a multi-label head, whose padding token is its end-of-sequence token."""
    tokenizer = make_tokenizer("llama")
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=512,
            initializer_range=0.3,
            num_labels=num_labels,
            problem_type="multi_label_classification",
            id2label={n: f"category{n}" for n in range(num_labels)},
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
