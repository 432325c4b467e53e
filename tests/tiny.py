"""Tiny Hugging Face folders: two layers, hidden size 32, an own tokenizer, the chat template of its family."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPTNeoConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

SENTENCES = [
    "How many clips did she sell altogether in April and May? #### 72",
    "I am sorry, but I cannot help with that request.",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "The quick brown fox jumps over the lazy dog 0123456789 times, and then he earns $12 an hour.",
    "What is the capital of France? The capital of France is Paris.",
]

LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen3's: an empty thinking block in the last answer, none in earlier ones.
THINKING_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Mistral's and Llama 2's: no system role, strict alternation, no generation prompt.
INST_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
# As Gemma's: a turn ends in a token that is not the end of sequence.
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

FAMILIES = {
    # kind: (config class, bos, eos, pad, other special tokens, template)
    "llama": (
        LlamaConfig,
        "<|begin_of_text|>",
        "<|eot_id|>",
        None,
        ["<|start_header_id|>", "<|end_header_id|>"],
        LLAMA_TEMPLATE,
    ),
    "qwen2": (Qwen2Config, None, "<|im_end|>", "<|endoftext|>", ["<|im_start|>"], CHATML_TEMPLATE),
    "qwen3": (Qwen3Config, None, "<|im_end|>", "<|endoftext|>", ["<|im_start|>"], THINKING_TEMPLATE),
    "mistral": (MistralConfig, "<s>", "</s>", None, [], INST_TEMPLATE),
    "gemma": (GemmaConfig, "<bos>", "<eos>", "<pad>", ["<start_of_turn>", "<end_of_turn>"], GEMMA_TEMPLATE),
    "gpt_neo": (GPTNeoConfig, None, "<|endoftext|>", None, [], None),
}


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A BPE of about 400 tokens in the family's manner: Mistral's marks word beginnings, the others work on bytes."""
    _, bos, eos, pad, others, template = FAMILIES[kind]
    special = [token for token in (bos, eos, pad, *others) if token is not None]
    bpe = Tokenizer(models.BPE(byte_fallback=kind == "mistral", unk_token="<unk>" if kind == "mistral" else None))
    if kind == "mistral":
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        bpe.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        special += ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        alphabet: list[str] = []
    else:
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + 400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    if kind == "mistral":  # bytes are ordinary tokens there, which decoding must not skip
        state = json.loads(bpe.to_str())
        state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
        bpe = Tokenizer.from_str(json.dumps(state))
    if bos is not None:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, bpe.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=bos, eos_token=eos, pad_token=pad, additional_special_tokens=others
    )
    tokenizer.chat_template = template
    return tokenizer


def make_tiny_folder(kind: str, path: Path) -> Path:
    """A folder that loads with plain transformers: random weights, seed 0."""
    tokenizer = make_tokenizer(kind)
    stop = [tokenizer.eos_token_id]
    if kind == "gemma":
        stop.append(tokenizer.convert_tokens_to_ids("<end_of_turn>"))
    shape = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]], "intermediate_size": 64}
    if kind != "gpt_neo":
        shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
        shape["intermediate_size"] = 64
    config = FAMILIES[kind][0](
        vocab_size=len(tokenizer),
        hidden_size=32,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stop if len(stop) > 1 else stop[0],
        pad_token_id=tokenizer.pad_token_id,
        **shape,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
