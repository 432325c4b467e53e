import json
import resource

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from antibody_llm.errors import ModelError, OutputError
from antibody_llm.files import held
from antibody_llm.models.adapters import add_lora
from antibody_llm.models.loading import load_model
from antibody_llm.models.names import read_provenance
from antibody_llm.models.saving import _replacing, save_adapter, save_model


@pytest.fixture
def loaded(tiny_llama_folder):
    return load_model(str(tiny_llama_folder), device="cpu")


@pytest.fixture
def adapted(loaded):
    model = add_lora(loaded.model, r=4, seed=0).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.constant_(parameter, 0.1)
    return model


@pytest.fixture
def tiny_disk():
    """No file may grow beyond a kilobyte: what a full disk does to a writer, as an error of the system itself."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(num_bytes):
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))

    yield fill
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_an_adapter_loads_with_plain_peft(tmp_path, tiny_folder, kind, monkeypatch):
    monkeypatch.chdir(tiny_folder(kind).parent)
    loaded = load_model("model", device="cpu")  # a relative name, which must resolve from elsewhere too
    adapted = add_lora(loaded.model, r=4, seed=0).eval()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.constant_(parameter, 0.1)
    save_adapter(adapted, tmp_path / "adapter", base=loaded.name, tokenizer=loaded.tokenizer)
    monkeypatch.chdir(tmp_path)
    named = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(named), tmp_path / "adapter").eval()
    ids = torch.arange(8)[None]
    assert torch.equal(plain(ids).logits, adapted(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    assert tokenizer("What is it?").input_ids == loaded.tokenizer("What is it?").input_ids


def test_a_model_loads_with_plain_transformers_and_tells_its_base(tmp_path, loaded, tiny_llama_folder):
    save_model(loaded.model, tmp_path / "m", tokenizer=loaded.tokenizer, base="lab", provenance={"seed": 3})
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    for old, new in zip(loaded.model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(old, new)
    assert read_provenance(str(tmp_path / "m")) == {"seed": 3, "kind": "model", "base": "lab"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]
    assert len({path.stat().st_mode for path in (tmp_path / "m").iterdir()}) == 1  # others may read the weights too


def test_tied_weights_are_stored_once_in_another_type(tmp_path, tiny_folder):
    loaded = load_model(str(tiny_folder("gemma")), device="cpu")
    save_model(loaded.model, tmp_path / "full", tokenizer=loaded.tokenizer)
    save_model(loaded.model, tmp_path / "half", tokenizer=loaded.tokenizer, dtype="bfloat16")
    full, half = ((tmp_path / kind / "model.safetensors").stat().st_size for kind in ("full", "half"))
    assert half < 0.55 * full
    model = load_model(str(tmp_path / "half"), device="cpu").model
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_an_earlier_save_is_replaced_and_anything_else_is_left_alone(tmp_path, loaded, adapted):
    folder = tmp_path / "out"
    save_adapter(adapted, folder, base=loaded.name, tokenizer=loaded.tokenizer, provenance={"run": 1})
    save_adapter(adapted, folder, base=loaded.name, tokenizer=loaded.tokenizer, provenance={"run": 2})
    assert read_provenance(str(folder))["run"] == 2
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.tex").write_text("years of work")
    with pytest.raises(OutputError, match="holds something else"):
        save_adapter(adapted, other, base=loaded.name, tokenizer=loaded.tokenizer)
    with pytest.raises(OutputError, match="a file is there"):
        save_adapter(adapted, other / "chapter1.tex", base=loaded.name, tokenizer=loaded.tokenizer)
    assert [path.name for path in other.iterdir()] == ["chapter1.tex"]


@pytest.mark.parametrize("num_bytes", [0, 1024, 14_000])
def test_a_full_disk_leaves_the_earlier_adapter_as_it_was(tmp_path, loaded, adapted, tiny_disk, num_bytes):
    folder = tmp_path / "out"
    save_adapter(adapted, folder, base=loaded.name, tokenizer=loaded.tokenizer)
    before = contents(folder)
    tiny_disk(num_bytes)
    with pytest.raises(OutputError, match=r"could not be saved.*unchanged"):
        save_adapter(adapted, folder, base=loaded.name, tokenizer=loaded.tokenizer)
    tiny_disk(resource.RLIM_INFINITY)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("num_bytes", [1024, 14_000, 30_000])
def test_a_full_disk_leaves_the_earlier_model_as_it_was(tmp_path, loaded, tiny_disk, num_bytes):
    folder = tmp_path / "out"
    save_model(loaded.model, folder, tokenizer=loaded.tokenizer)
    before = contents(folder)
    tiny_disk(num_bytes)
    with pytest.raises(OutputError, match="could not be saved"):
        save_model(loaded.model, folder, tokenizer=loaded.tokenizer, dtype="bfloat16")
    tiny_disk(resource.RLIM_INFINITY)
    assert contents(folder) == before


def test_a_rename_that_fails_puts_the_earlier_save_back(tmp_path, loaded, adapted, monkeypatch):
    from pathlib import Path

    folder = tmp_path / "out"
    save_adapter(adapted, folder, base=loaded.name, tokenizer=loaded.tokenizer)
    before = contents(folder)
    rename = Path.rename

    def failing(self, target):
        if ".new-" in self.name:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match="No space left"):
        save_adapter(adapted, folder, base=loaded.name, tokenizer=loaded.tokenizer)
    assert contents(folder) == before


def test_what_a_killed_save_has_left_is_removed_by_the_next_and_an_earlier_save_put_back(tmp_path, loaded, adapted):
    folder = tmp_path / "out"
    save_adapter(adapted, folder, base=loaded.name, tokenizer=loaded.tokenizer)
    before = contents(folder)
    living = tmp_path / ".out.new-2"
    for left in (tmp_path / ".out.new-1", living, tmp_path / ".outer.new-1"):
        left.mkdir()
    folder.rename(tmp_path / ".out.old-1")  # killed between its two renames
    with held(living), _replacing(folder, "adapter_config.json") as new:
        assert contents(folder) == before
        (new / "antibody.json").write_text("{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.new-2", ".outer.new-1", "out"]


def test_each_save_refuses_the_other_kind(tmp_path, tiny_llama_folder, adapted, loaded):
    with pytest.raises(ModelError, match="has an adapter on it"):
        save_model(adapted, tmp_path / "a", tokenizer=loaded.tokenizer)
    plain = load_model(str(tiny_llama_folder), device="cpu")
    with pytest.raises(ModelError, match="no adapter to save"):
        save_adapter(plain.model, tmp_path / "b", base=plain.name, tokenizer=plain.tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_is_nowhere_is_refused_before_anything_is_written(tmp_path, adapted, loaded):
    with pytest.raises(ModelError, match="no such folder"):
        save_adapter(adapted, tmp_path / "a", base="./nowhere", tokenizer=loaded.tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_a_base_given_by_a_relative_name_is_found_from_elsewhere(tmp_path, tiny_llama_folder, monkeypatch):
    monkeypatch.chdir(tiny_llama_folder.parent)
    loaded = load_model("model", device="cpu")
    save_model(loaded.model, tmp_path / "m", tokenizer=loaded.tokenizer, base="model")
    monkeypatch.chdir(tmp_path)
    assert load_model("m", device="cpu").base == str(tiny_llama_folder)


def test_an_adapter_that_would_lose_a_part_of_what_was_trained_is_refused(tmp_path, loaded, adapted):
    adapted.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(ModelError, match=r"1 trained weights are no part of the adapter .*embed_tokens.*would be lost"):
        save_adapter(adapted, tmp_path / "a", base=loaded.name, tokenizer=loaded.tokenizer)
    adapted.get_input_embeddings().weight.requires_grad_(False)
    loaded.tokenizer.add_tokens(["<added>"])
    with pytest.raises(ModelError, match=r"404 embeddings and 405 tokens.*does not hold added tokens"):
        save_adapter(adapted, tmp_path / "a", base=loaded.name, tokenizer=loaded.tokenizer)
    adapted.resize_token_embeddings(405)
    adapted.requires_grad_(False)
    with pytest.raises(ModelError, match=r"405 embeddings .* its base 404"):
        save_adapter(adapted, tmp_path / "a", base=loaded.name, tokenizer=loaded.tokenizer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options", [{"modules_to_save": ["lm_head"]}, {"bias": "all"}, {"trainable_token_indices": [1]}]
)
def test_an_adapter_of_more_than_factors_is_refused_before_anything_is_written(tmp_path, loaded, options):
    model = get_peft_model(loaded.model, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", **options))
    with pytest.raises(ModelError, match="trains whole weights"):
        save_adapter(model, tmp_path / "a", base=loaded.name, tokenizer=loaded.tokenizer)
    assert list(tmp_path.iterdir()) == []
