import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = 61


@pytest.fixture
def tiny_tokenizer():
    vocab = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i + 3 for i in range(WORDS)}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


@pytest.fixture
def tiny_lm():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS + 3,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        initializer_range=0.4,  # wide, so that completions differ from prompt to prompt
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def prompts():
    generator = torch.Generator().manual_seed(1)
    lengths = [5, 1, 17, 9, 3, 12, 30, 2, 8, 8, 21]
    return [torch.randint(3, WORDS + 3, (n,), generator=generator).tolist() for n in lengths]
