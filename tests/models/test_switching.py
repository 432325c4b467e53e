import pytest
import torch

from antibody_llm.errors import ModelError
from antibody_llm.models.adapters import add_lora
from antibody_llm.models.loading import load_model
from antibody_llm.models.saving import save_adapter
from antibody_llm.models.switching import SwitchedModel

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def adapters(tiny_llama_folder, tmp_path_factory):
    """Three adapters on one model, of different ranks and layers, none of them without effect."""
    folders = []
    for seed, (r, targets) in enumerate([(4, "all-linear"), (2, ["q_proj"]), (3, ["down_proj", "v_proj"])]):
        loaded = load_model(str(tiny_llama_folder))
        model = add_lora(loaded.model, r=r, alpha=8, targets=targets, seed=seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(generator=torch.Generator().manual_seed(seed))
        folder = tmp_path_factory.mktemp("adapters") / f"a{seed}"
        save_adapter(model, folder, base=str(tiny_llama_folder), tokenizer=loaded.tokenizer, provenance={})
        folders.append(str(folder))
    return folders


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_each_adapter_switched_on_computes_the_very_logits_of_a_model_loaded_with_it_alone(tiny_llama_folder, adapters):
    switched = SwitchedModel(str(tiny_llama_folder))
    for adapter in [None, *adapters, adapters[0], None, adapters[2]]:
        with switched.on(adapter) as loaded:
            assert torch.equal(logits(loaded.model), logits(load_model(str(tiny_llama_folder), adapter=adapter).model))


def test_the_adapter_not_asked_for_the_longest_makes_room_and_comes_back(tiny_llama_folder, adapters):
    switched = SwitchedModel(str(tiny_llama_folder), most=2)
    first, second, third = adapters
    for adapter in (first, second, first, third, second):
        with switched.on(adapter) as loaded:
            assert torch.equal(logits(loaded.model), logits(load_model(str(tiny_llama_folder), adapter=adapter).model))
    assert switched.adapters == (third, second)


def test_an_adapter_of_another_model_is_refused_and_the_others_stay(tiny_llama_folder, adapters, tiny_qwen_folder):
    switched = SwitchedModel(str(tiny_qwen_folder))
    with pytest.raises(ModelError, match="was trained on"):
        switched.load(adapters[0])
    with switched.on(None) as loaded:
        assert torch.equal(logits(loaded.model), logits(load_model(str(tiny_qwen_folder)).model))
