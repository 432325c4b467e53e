import copy

import torch
from peft import PeftModel
from torch.testing import assert_close

from antibody_llm.models.adapters import add_lora
from antibody_llm.models.lora_factors import lora_factors, products_added, widen
from tests.defences.plain import shifted
from tests.tinylm import tiny_llama

IDS = torch.arange(3, 12)[None]


def adapted():
    return shifted(add_lora(tiny_llama(), r=4, alpha=8, targets=["q_proj", "v_proj"], seed=0), 0.1)


def random_products(model, r=3):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(r, of.a.shape[1], generator=generator), torch.randn(of.b.shape[0], r, generator=generator) / 9)
        for of in lora_factors(model)
    ]


def with_products_in_the_base(model, products):
    twin = copy.deepcopy(model)
    for of, (a, b) in zip(lora_factors(twin), products, strict=True):
        of.layer.base_layer.weight.data += of.scaling * b @ a
    return twin


def test_a_layer_puts_out_what_it_would_with_the_products_in_its_weight_and_no_more_afterwards():
    model = adapted()
    products = random_products(model)
    before = model(IDS).logits
    with products_added(lora_factors(model), [[p] for p in products]):
        inside = model(IDS).logits
    assert_close(inside, with_products_in_the_base(model, products)(IDS).logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(model(IDS).logits, before)


def test_a_widened_adapter_computes_the_same_and_is_read_back_from_its_folder(tmp_path):
    model = adapted()
    products = random_products(model)
    expected = with_products_in_the_base(model, products)(IDS).logits
    widen(model, products)
    assert_close(model(IDS).logits, expected, atol=1e-4, rtol=1e-4)
    assert model.peft_config["default"].r == 7
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert_close(again(IDS).logits, model(IDS).logits)


def test_a_model_without_an_adapter_has_no_factors():
    assert lora_factors(tiny_llama()) == []
