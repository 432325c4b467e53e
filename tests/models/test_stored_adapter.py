"""Adapters as others write them: what loads, what is refused and how, and that nothing in their files runs or hangs."""

import json
import pickle
import shutil
import time

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from antibody_llm.errors import ModelError
from antibody_llm.models import stored_adapter
from antibody_llm.models.adapters import add_lora, trainable_parameters
from antibody_llm.models.loading import load_model
from antibody_llm.models.saving import save_adapter

IDS = torch.arange(8)[None]


def of_peft(base, folder, **options):
    """An adapter made and saved by PEFT alone, with factors that change the output; returns its logits."""
    options = {"r": 4, "target_modules": ["q_proj", "v_proj"], **options}
    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    adapted.save_pretrained(folder)
    return adapted(IDS).logits.detach()


@pytest.fixture(scope="module")
def stored(tmp_path_factory, tiny_llama_folder):
    folder = tmp_path_factory.mktemp("stored") / "adapter"
    of_peft(tiny_llama_folder, folder)
    return folder


@pytest.fixture
def changed(tmp_path, stored):
    """The stored adapter with other entries in its configuration, or other tensors."""

    def change(tensors=None, **entries):
        folder = shutil.copytree(stored, tmp_path / "adapter")
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, **entries}))
        if tensors is not None:
            save_file(tensors(load_file(folder / "adapter_model.safetensors")), folder / "adapter_model.safetensors")
        return str(folder)

    return change


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": "all-linear"},
        {"target_modules": r"model\.layers\.\d+\.self_attn\.(q|k)_proj"},
        {"target_modules": r".*\.(q_proj|down_proj)", "exclude_modules": r".*\.0\..*"},
        {"exclude_modules": ["layers.1.self_attn.q_proj"]},
        {"layers_to_transform": [1], "layers_pattern": "layers"},
        {"layers_to_transform": 0},
        {"rank_pattern": {"q_proj": 2, r"layers\.1\..*v_proj": 8}, "alpha_pattern": {"v_proj": 32}},
        {"use_rslora": True, "lora_alpha": 16},
        {"use_dora": True},
        {"init_lora_weights": "gaussian"},
        {"target_modules": ["lm_head", "q_proj"]},
    ],
    ids=str,
)
def test_an_adapter_of_peft_s_gives_the_logits_it_gave_there(tmp_path, tiny_llama_folder, options):
    logits = of_peft(tiny_llama_folder, tmp_path / "adapter", **options)
    loaded = load_model(str(tmp_path / "adapter"), base=str(tiny_llama_folder), device="cpu")
    torch.testing.assert_close(loaded.model.eval()(IDS).logits, logits, rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_factors_in_half_precision_are_trained_in_float32(changed):
    halved = changed(tensors=lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
    model = load_model(halved, device="cpu", trainable_adapter=True).model
    assert {parameter.dtype for parameter in trainable_parameters(model).values()} == {torch.float32}


def test_dropout_rests_unless_the_adapter_is_to_be_trained(tmp_path, tiny_llama_folder):
    logits = of_peft(tiny_llama_folder, tmp_path / "adapter", lora_dropout=0.5)
    assert torch.equal(load_model(str(tmp_path / "adapter"), device="cpu").model(IDS).logits, logits)


BOMB = r"(.{1,60}){1,60}[!?]"


@pytest.mark.parametrize(
    "entries",
    [
        {"target_modules": BOMB},
        {"exclude_modules": BOMB},
        {"rank_pattern": {BOMB: 4}},
        {"alpha_pattern": {BOMB: 4}},
    ],
    ids=lambda entries: next(iter(entries)),
)
def test_a_pattern_that_never_ends_is_stopped(changed, entries, monkeypatch):
    monkeypatch.setattr(stored_adapter, "PATTERN_SECONDS", 0.1)
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"adapter_config\.json: matching .* Name the layers in a list"):
        load_model(changed(**entries), device="cpu")
    assert time.monotonic() - started < 5


def test_a_hundred_thousand_names_are_matched_at_once(changed):
    names = [f"x{number}" for number in range(100_000)]
    started = time.monotonic()
    assert load_model(changed(target_modules=["q_proj", "v_proj", *names], exclude_modules=names), device="cpu")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"target_modules": "("}, "no pattern"),
        ({"target_modules": "(" * 500 + ")" * 500}, "no pattern|has no layer"),
        ({"target_modules": "q" * 2000}, "no pattern"),
        ({"target_modules": ["c_attn"]}, "no layer .*another model"),
        ({"target_modules": []}, "names no layer"),
        ({"target_modules": 5}, "target_modules is 5, not a text or a list of texts"),
        ({"target_modules": ".*"}, "cannot be loaded"),
        ({"layers_to_transform": [0], "layers_pattern": BOMB}, "not a layer's name"),
        ({"layers_to_transform": [0], "target_modules": "q_proj"}, "list of target_modules only"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path is 5, not a text"),
        ({"base_model_name_or_path": ["x"]}, "not a text"),
        ({"r": 10**9}, "shapes do not fit"),
        ({"r": 0}, "whole numbers from 1 on"),
        ({"r": True}, "r is True"),
        ({"rank_pattern": {"q_proj": "x"}}, "q_proj is 'x', not a number"),
        ({"lora_alpha": -1}, "above 0"),
        ({"lora_alpha": float("nan")}, "above 0"),
        ({"lora_dropout": 2}, "lora_dropout is 2"),
        ({"peft_type": "LOHA"}, "LOHA.*only LoRA"),
        ({"peft_type": "\x1b[31m"}, "only LoRA"),
        ({"task_type": "SEQ_CLS"}, "SEQ_CLS.*only LoRA"),
        ({"bias": "all"}, "biases .*merge_and_unload"),
        ({"modules_to_save": ["lm_head"]}, "whole layers .*lm_head.*merge_and_unload"),
        ({"trainable_token_indices": [1, 2]}, "single tokens .*merge_and_unload"),
        ({"init_lora_weights": "pissa"}, "the model's own weights .*merge_and_unload"),
        ({"layer_replication": [[0, 10**6]]}, "layer_replication.*merge_and_unload"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"from_the_future": {"a": 1}}, "from_the_future"),
    ],
    ids=str,
)
def test_a_configuration_that_is_malformed_or_asks_for_more_is_refused(changed, entries, said):
    with pytest.raises(ModelError, match=said) as caught:
        load_model(changed(**entries), device="cpu")
    assert str(caught.value).isprintable()


def first(tensors):
    return sorted(tensors)[0]


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (lambda t: {k: v for k, v in t.items() if k != first(t)}, r"1 of the adapter's weights .*lora_A"),
        (lambda t: {k: v for k, v in t.items() if "layers.1" not in k}, r"4 of the adapter's weights .*layers\.1"),
        (lambda t: {**t, "base_model.model.x.lora_A.weight": torch.ones(1)}, r"1 of the adapter's weights .*model\.x"),
        (lambda t: {**t, first(t): torch.ones(5, 32)}, r"shapes do not fit .*is \[5, 32\], not \[4, 32\]"),
        (lambda t: {**t, first(t): torch.ones(4, 32, dtype=torch.int8)}, "no floating-point numbers"),
        (lambda t: {**t, first(t): torch.full((4, 32), torch.nan)}, r"adapter: 1 weight holds NaN .*lora_A"),
        (
            lambda t: {**t, "base_model.model.model.embed_tokens.weight": torch.ones(410, 32)},
            "tokens were added.*merge",
        ),
    ],
    ids=["one lacks", "a layer lacks", "one too many", "shape", "type", "NaN", "added tokens"],
)
def test_an_adapter_whose_tensors_are_not_those_it_names_is_refused(changed, tensors, said):
    with pytest.raises(ModelError, match=said):
        load_model(changed(tensors=tensors), device="cpu")


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickled_adapter_loads_and_runs_nothing(tmp_path, changed):
    folder = tmp_path / "adapter"
    changed()
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    assert load_model(str(folder), device="cpu").adapter
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(folder), device="cpu")
    torch.save({"a": Runs(tmp_path / "ran")}, folder / "adapter_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(folder), device="cpu")
    assert not (tmp_path / "ran").exists()
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize("kind", ["llama", "gemma"])  # gemma's embeddings are tied
@pytest.mark.parametrize("targets", [("q_proj", "k_proj", "v_proj"), "all-linear"], ids=["paper", "all-linear"])
def test_merged_into_its_model_an_adapter_gives_the_same_logits(tmp_path, tiny_folder, kind, targets):
    loaded = load_model(str(tiny_folder(kind)), device="cpu")
    adapted = add_lora(loaded.model, r=4, targets=targets, seed=0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    save_adapter(adapted, tmp_path / "adapter", base=loaded.name, tokenizer=loaded.tokenizer)
    model = load_model(str(tmp_path / "adapter"), device="cpu").model.eval()
    with torch.no_grad():
        unmerged, base = model(IDS).logits, load_model(loaded.name, device="cpu").model.eval()(IDS).logits
        merged = model.merge_and_unload()(IDS).logits
    assert (unmerged - base).abs().max() > 1e-2
    torch.testing.assert_close(merged, unmerged, rtol=0, atol=2e-6)


def test_an_adapter_on_one_end_of_tied_embeddings_is_refused(tmp_path, tiny_folder):
    for target in ("lm_head", "embed_tokens"):
        of_peft(tiny_folder("gemma"), tmp_path / target, target_modules=[target, "q_proj"])
        with pytest.raises(ModelError, match=r"tied.*without embed_tokens and lm_head"):
            load_model(str(tmp_path / target), device="cpu")


def test_embeddings_that_were_changed_beside_factors_on_them_are_refused(tmp_path, tiny_llama_folder):
    of_peft(tiny_llama_folder, tmp_path / "adapter", target_modules=["lm_head", "q_proj"])
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.lm_head.base_layer.weight"] += 1
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"whole weights .*lm_head\.base_layer"):
        load_model(str(tmp_path / "adapter"), device="cpu")


def test_an_adapter_on_the_head_is_read_but_not_trained(tmp_path, tiny_llama_folder):
    of_peft(tiny_llama_folder, tmp_path / "adapter", target_modules=["lm_head", "q_proj"])
    assert isinstance(load_model(str(tmp_path / "adapter"), device="cpu").model, PeftModel)
    with pytest.raises(ModelError, match="read past adapters in training"):
        load_model(str(tmp_path / "adapter"), device="cpu", trainable_adapter=True)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"rank_pattern": {"q_proj": 2}}], ids=str)
def test_an_adapter_that_servers_misread_is_not_trained_further(tmp_path, tiny_llama_folder, options):
    of_peft(tiny_llama_folder, tmp_path / "adapter", **options)
    with pytest.raises(ModelError, match="vLLM refuses the one and has misread the other"):
        load_model(str(tmp_path / "adapter"), device="cpu", trainable_adapter=True)
