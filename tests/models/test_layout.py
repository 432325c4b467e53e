import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GemmaConfig, GPTNeoXConfig, LlamaConfig, MistralConfig, Qwen2Config

from antibody_llm.errors import ModelError
from antibody_llm.models.adapters import add_lora
from antibody_llm.models.layout import (
    attention_of,
    context_length,
    decoder_layers,
    final_norm,
    mlp_of,
    require_same_shape,
)

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize("config", [LlamaConfig, Qwen2Config, MistralConfig, GPTNeoXConfig, GemmaConfig])
def test_layers_attention_and_feed_forward_are_found_and_run_in_order(config):
    extra = {} if config is GPTNeoXConfig else {"num_key_value_heads": 2}
    extra |= {"head_dim": 8} if config is GemmaConfig else {}
    model = AutoModelForCausalLM.from_config(config(**SMALL, **extra))
    called = []
    layers = decoder_layers(model)
    for number, layer in enumerate(layers):
        attention_of(layer).register_forward_hook(lambda *_, n=number: called.append(("attention", n)))
        mlp_of(layer).register_forward_hook(lambda *_, n=number: called.append(("mlp", n)))
    final_norm(model).register_forward_hook(lambda *_: called.append(("norm", 3)))
    model(input_ids=torch.tensor([[1, 2, 3]]))
    assert called.pop() == ("norm", 3)
    assert sorted(called) == sorted((kind, n) for kind in ("attention", "mlp") for n in range(3))
    assert [n for kind, n in called if kind == "attention"] == [0, 1, 2]


def test_layers_are_found_under_an_adapter():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL))
    layers = decoder_layers(model)
    assert decoder_layers(add_lora(model, r=2, seed=0)) == layers


def test_an_unknown_layout_is_refused_by_name():
    with pytest.raises(ModelError, match="Linear keeps its decoder layers in none of"):
        decoder_layers(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="self-attention"):
        attention_of(nn.Linear(2, 2))


def test_a_context_that_is_no_number_of_tokens_is_refused():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, max_position_embeddings=64))
    assert context_length(model) == 64
    for wrong in ({}, "64", -1, True, 1.5):
        model.config.__dict__["max_position_embeddings"] = wrong
        with pytest.raises(ModelError, match="max_position_embeddings is"):
            context_length(model)
    model.config.__dict__["max_position_embeddings"] = None
    assert context_length(model) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 16}, "hidden_size is 16"),
        ({"num_hidden_layers": 2}, "num_hidden_layers is 2"),
        ({"vocab_size": 49}, "49 embeddings for the tokenizer's 50 tokens"),
    ],
)
def test_a_base_that_cannot_be_compared_layer_by_layer_is_refused(change, message):
    model, other = (AutoModelForCausalLM.from_config(LlamaConfig(**SMALL | some)) for some in ({}, change))
    require_same_shape(model, model, named="base", num_tokens=50)
    with pytest.raises(ModelError, match=f"base: .*{message}"):
        require_same_shape(model, other, named="base", num_tokens=50)
    with pytest.raises(ModelError, match="model_type"):
        require_same_shape(model, AutoModelForCausalLM.from_config(MistralConfig(**SMALL)), named="base", num_tokens=50)
