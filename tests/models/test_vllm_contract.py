"""Every adapter that ``save_adapter`` writes keeps to vLLM's rules (vllm_rules.py), and loads with PEFT alone."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from antibody_llm.models.adapters import PAPER_TARGETS, add_lora, trainable_parameters
from antibody_llm.models.loading import load_model
from antibody_llm.models.saving import save_adapter

from .vllm_rules import MAX_RANK, complaints, parsed_name

IDS = torch.arange(8)[None]
TARGETS = pytest.mark.parametrize("targets", [PAPER_TARGETS, "all-linear"], ids=["paper", "all-linear"])
KINDS = pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gemma"])


def trained(model):
    """As after training: every factor is away from where it began."""
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.05)
    return model.eval()


@KINDS
@TARGETS
def test_a_saved_adapter_keeps_to_the_rules_and_so_does_the_one_that_goes_on_from_it(
    tmp_path, tiny_folder, kind, targets, monkeypatch
):
    monkeypatch.chdir(tiny_folder(kind).parent)
    loaded = load_model("model", device="cpu")  # a relative name
    aligned = trained(add_lora(loaded.model, r=8, targets=targets, seed=0))
    save_adapter(aligned, tmp_path / "aligned", base=loaded.name, tokenizer=loaded.tokenizer)
    monkeypatch.chdir(tmp_path)  # another working directory from here on
    further = load_model("aligned", device="cpu", trainable_adapter=True)
    tuned = trained(further.model)
    save_adapter(tuned, tmp_path / "tuned", base=further.name, tokenizer=further.tokenizer)
    for folder, model in (("aligned", aligned), ("tuned", tuned)):
        assert complaints(tmp_path / folder) == []
        named = json.loads((tmp_path / folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert Path(named) == tiny_folder(kind)
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(named), tmp_path / folder).eval()
        assert torch.equal(plain(IDS).logits, model(IDS).logits)
        assert len(AutoTokenizer.from_pretrained(tmp_path / folder)) <= plain.get_input_embeddings().weight.shape[0]
    assert not torch.equal(aligned(IDS).logits, tuned(IDS).logits)


def test_an_adapter_whose_targets_were_a_pattern_is_saved_with_their_names(tmp_path, tiny_llama_folder):
    pattern = r"model\.layers\.\d+\.self_attn\.(q|k)_proj"
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_folder)
    get_peft_model(model, LoraConfig(r=4, target_modules=pattern, task_type="CAUSAL_LM")).save_pretrained(
        tmp_path / "a"
    )
    further = load_model(str(tmp_path / "a"), device="cpu", trainable_adapter=True)
    save_adapter(further.model, tmp_path / "b", base=further.name, tokenizer=further.tokenizer)
    assert complaints(tmp_path / "b") == []
    names = json.loads((tmp_path / "b" / "adapter_config.json").read_text())["target_modules"]
    assert len(names) == 4
    assert all(name.startswith("model.layers.") for name in names)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias"),
        ({"rank_pattern": {"k_proj": 2}}, "patterns"),
        ({"r": MAX_RANK * 2}, "ranks"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head is unexpected"),
    ],
    ids=str,
)
def test_the_rules_complain_of_what_vllm_refuses(tmp_path, tiny_folder, options, complaint):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"))
    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "k_proj"], "task_type": "CAUSAL_LM", **options})
    get_peft_model(model, config).save_pretrained(tmp_path)
    assert any(complaint in found for found in complaints(tmp_path))


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", ("model.layers.0.self_attn.q_proj", "A")),
        ("base_model.model.model.embed_tokens.lora_embedding_B", ("model.embed_tokens", "B")),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight", None),
        ("base_model.model.model.embed_tokens.weight", None),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", None),
    ],
)
def test_names_are_parsed_as_vllm_parses_them(name, parsed):
    assert parsed_name(name) == parsed
