import pytest
import torch
from peft import PeftModel

from antibody_llm.errors import ConfigError, ModelError
from antibody_llm.models.adapters import adapter_disabled, add_lora, trainable_parameters
from antibody_llm.models.loading import load_model


@pytest.fixture
def model(tiny_llama_folder):
    return load_model(str(tiny_llama_folder), device="cpu").model.eval()


IDS = torch.arange(8)[None]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gemma", "gpt_neo"])
def test_the_paper_s_targets_are_q_k_v_of_every_layer(tiny_folder, kind):
    adapted = add_lora(load_model(str(tiny_folder(kind)), device="cpu").model, seed=0)
    names = trainable_parameters(adapted)
    assert len(names) == 2 * 3 * 2  # layers, projections, factors
    assert {name.split(".lora_")[0][-6:] for name in names} == {"q_proj", "k_proj", "v_proj"}
    config = adapted.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (32, 4, 0.0)


def test_a_new_adapter_leaves_the_output_as_it_was(model):
    before = model(IDS).logits
    assert torch.equal(add_lora(model, seed=0).eval()(IDS).logits, before)


def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone(tiny_llama_folder):
    state = torch.get_rng_state()
    one, same, other = (
        list(trainable_parameters(add_lora(load_model(str(tiny_llama_folder), device="cpu").model, seed=s)).values())
        for s in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])


def test_all_linear_reaches_every_layer_but_the_head(model):
    names = trainable_parameters(add_lora(model, targets="all-linear", seed=0))
    assert len(names) == 2 * 7 * 2
    assert not any("lm_head" in name for name in names)


def test_a_target_that_is_not_there_lists_those_that_are(model):
    with pytest.raises(ModelError, match=r"no linear layer c_attn\. .*k_proj.*all-linear"):
        add_lora(model, targets=["q_proj", "c_attn"], seed=0)


@pytest.mark.parametrize("options", [{"r": 0}, {"alpha": 0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_numbers_out_of_range_are_refused(model, options):
    with pytest.raises(ConfigError):
        add_lora(model, seed=0, **options)


def test_a_second_adapter_is_refused(model):
    with pytest.raises(ModelError, match="adapter already"):
        add_lora(add_lora(model, seed=0), seed=0)


def test_without_the_adapter_the_model_is_the_base_and_every_flag_comes_back(model):
    base = model(IDS).logits
    adapted = add_lora(model, seed=0).eval()
    for parameter in trainable_parameters(adapted).values():
        torch.nn.init.constant_(parameter, 0.1)
    frozen = next(iter(trainable_parameters(adapted)))
    adapted.get_parameter(frozen).requires_grad_(False)
    flags = {name: p.requires_grad for name, p in adapted.named_parameters()}
    with_adapter = adapted(IDS).logits
    with adapter_disabled(adapted):
        assert torch.equal(adapted(IDS).logits, base)
    assert torch.equal(adapted(IDS).logits, with_adapter)
    assert not torch.allclose(with_adapter, base)
    assert {name: p.requires_grad for name, p in adapted.named_parameters()} == flags
    with pytest.raises(RuntimeError), adapter_disabled(adapted):
        raise RuntimeError
    assert {name: p.requires_grad for name, p in adapted.named_parameters()} == flags
    assert isinstance(adapted, PeftModel)


def test_a_model_without_adapter_has_none_to_switch_off(model):
    with pytest.raises(ModelError, match="as base"), adapter_disabled(model):
        pass


def test_the_head_is_no_target(model):
    with pytest.raises(ModelError, match=r"no linear layer lm_head\. .*q_proj"):
        add_lora(model, targets=["q_proj", "lm_head"], seed=0)


def test_no_target_and_a_rank_above_the_layers_sides_are_refused(model):
    with pytest.raises(ConfigError, match=r"targets: none\. Name some of .*q_proj"):
        add_lora(model, targets=[], seed=0)
    with pytest.raises(ConfigError, match="r 1000000 is above 32, the largest side"):
        add_lora(model, r=1_000_000, seed=0)
    with pytest.raises(ConfigError, match="r 65 is above 64"):
        add_lora(model, r=65, targets="all-linear", seed=0)
