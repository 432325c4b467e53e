"""Tokenizers in miniature, each built as its family's tokenizer.json is, with the family's own chat template."""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny import INST_TEMPLATE, SENTENCES

GPT4_WORDS = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def published_template(name: str) -> str:
    """A family's own template, as TRL ships it."""
    folder = Path(next(iter(find_spec("trl").submodule_search_locations))) / "chat_templates"
    return (folder / f"{name}.jinja").read_text(encoding="utf-8")


def _trained(bpe: Tokenizer, *, alphabet: Sequence[str], texts: Sequence[str], vocab_size: int) -> Tokenizer:
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=list(alphabet), show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    return bpe


def _byte_level(normalizer=None, split=True, texts: Sequence[str] = SENTENCES, vocab_size: int = 700) -> Tokenizer:
    bpe = Tokenizer(models.BPE(ignore_merges=split))
    if normalizer is not None:
        bpe.normalizer = normalizer
    words = [pre_tokenizers.Split(GPT4_WORDS, "isolated")] if split else []
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [*words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)]
    )
    bpe.decoder = decoders.ByteLevel()
    return _trained(bpe, alphabet=pre_tokenizers.ByteLevel.alphabet(), texts=texts, vocab_size=vocab_size)


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _sentencepiece(special: list[str], normalizer, pre_tokenizer=None) -> Tokenizer:
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    bpe.normalizer = normalizer
    if pre_tokenizer is not None:
        bpe.pre_tokenizer = pre_tokenizer
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    bpe.decoder = decoders.Sequence(steps)
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*special, *BYTES], show_progress=False)
    bpe.train_from_iterator(SENTENCES, trainer)
    state = json.loads(bpe.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in BYTES]
    return Tokenizer.from_str(json.dumps(state))


def _with_bos(bpe: Tokenizer, bos: str) -> Tokenizer:
    bpe.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, bpe.token_to_id(bos))])
    return bpe


def llama3(texts: Sequence[str] = SENTENCES, vocab_size: int = 700) -> PreTrainedTokenizerFast:
    bpe = _byte_level(texts=texts, vocab_size=vocab_size)
    names = ["begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag"]
    bpe.add_special_tokens([f"<|{name}|>" for name in [*names, *(f"reserved_special_token_{i}" for i in range(9))]])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_with_bos(bpe, "<|begin_of_text|>"), bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )
    tokenizer.chat_template = published_template("llama3_1")
    return tokenizer


def qwen(template: str, texts: Sequence[str] = SENTENCES, vocab_size: int = 700) -> PreTrainedTokenizerFast:
    bpe = _byte_level(normalizers.NFC(), texts=texts, vocab_size=vocab_size)
    bpe.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    plain = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
    bpe.add_tokens([AddedToken(token, normalized=False, special=False) for token in plain])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = published_template(template)
    return tokenizer


def gemma3() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    bpe = _sentencepiece(special, normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"))
    bpe.add_tokens([AddedToken(token, normalized=False) for token in ("\n\n", "▁▁", "<table>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_with_bos(bpe, "<bos>"), bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    tokenizer.chat_template = published_template("gemma3")
    return tokenizer


def mistral() -> PreTrainedTokenizerFast:
    bpe = _sentencepiece(
        ["<unk>", "<s>", "</s>"], normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    )
    bpe.add_special_tokens(["[INST]", "[/INST]"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_with_bos(bpe, "<s>"), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = INST_TEMPLATE
    return tokenizer


def phi3() -> PreTrainedTokenizerFast:
    bpe = _sentencepiece(
        ["<unk>", "<s>", "</s>"], normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    )
    names = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
    bpe.add_special_tokens([AddedToken(n, rstrip=True, lstrip=n == "<|end|>", normalized=False) for n in names])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="<|endoftext|>", unk_token="<unk>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = published_template("phi3")
    return tokenizer


def gpt_neox() -> PreTrainedTokenizerFast:
    bpe = _byte_level(normalizers.NFC(), split=False)
    bpe.add_special_tokens([AddedToken("<|endoftext|>", normalized=False), AddedToken("<|padding|>", normalized=False)])
    bpe.add_tokens([AddedToken(" " * n, normalized=True) for n in range(2, 9)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>", pad_token="<|padding|>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token if m.role == 'assistant' else '\n' }}"
        "{% endfor %}{{ 'assistant: ' if add_generation_prompt }}"
    )
    return tokenizer


def unigram() -> PreTrainedTokenizerFast:
    """Specials in the vocabulary itself, a normaliser that changes case, and tokens that are matched after it."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("<sep>", -1.0), ("▁", -2.0)]
    letters = sorted({c for sentence in SENTENCES for c in sentence.lower() if not c.isspace()} | set("<>/|[]_"))
    model = Tokenizer(models.Unigram([*pieces, *((c, -5.0) for c in letters)], unk_id=0))
    model.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    model.decoder = decoders.Metaspace(prepend_scheme="always")
    model.add_special_tokens(
        [
            AddedToken("<s>", normalized=True),
            AddedToken("</s>", normalized=True),
            AddedToken("<unk>"),
            AddedToken("<sep>", normalized=True, single_word=False),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<sep>"
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ '<sep>' if m.role != 'assistant' else '</s>' }}"
        "{% endfor %}"
    )
    return tokenizer


FAMILIES = {
    "llama3": llama3,
    "qwen2.5": lambda: qwen("qwen2_5"),
    "qwen3": lambda: qwen("qwen3"),
    "gemma3": gemma3,
    "mistral": mistral,
    "phi3": phi3,
    "gpt-neox": gpt_neox,
    "unigram": unigram,
}
