import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from antibody.errors import ModelError
from antibody.models import loading
from antibody.models.adapters import add_lora
from antibody.models.loading import PACKAGED, is_adapter, load_model, resolve
from antibody.models.saving import save_adapter, save_model
from tests.tiny import FAMILIES


@pytest.fixture
def copied(tmp_path, tiny_llama_folder):
    """A copy of the tiny folder to spoil, without some files."""

    def copy(*without):
        shutil.copytree(tiny_llama_folder, tmp_path / "copy")
        for name in without:
            (tmp_path / "copy" / name).unlink(missing_ok=True)
        return tmp_path / "copy"

    return copy


@pytest.fixture(scope="module")
def adapter_folder(tmp_path_factory, tiny_llama_folder):
    """An adapter on the tiny Llama whose B is not zero, so that it changes the output."""
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    loaded = load_model(str(tiny_llama_folder))
    model = add_lora(loaded.model, r=4, seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    save_adapter(model, folder, base=str(tiny_llama_folder), tokenizer=loaded.tokenizer)
    return folder


def logits(model):
    return model(torch.arange(8)[None]).logits


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_layout_loads_in_float32_with_a_padding_token(tiny_folder, kind):
    loaded = load_model(str(tiny_folder(kind)), device="cpu")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert loaded.tokenizer.pad_token_id is not None
    assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id
    assert (loaded.name, loaded.base, loaded.adapter) == (str(tiny_folder(kind)), None, None)


def test_bfloat16_on_disk_is_float32_on_a_cpu_unless_asked_otherwise(tmp_path, tiny_llama_folder):
    loaded = load_model(str(tiny_llama_folder), device="cpu")
    save_model(loaded.model, tmp_path / "half", tokenizer=loaded.tokenizer, dtype="bfloat16")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_model(str(tmp_path / "half"), device="cpu").model.dtype == torch.float32
    half = load_model(str(tmp_path / "half"), device="cpu", dtype="bfloat16").model
    assert half.dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    for old, new in zip(loaded.model.parameters(), half.parameters(), strict=True):
        assert torch.equal(old.bfloat16(), new)
    with pytest.raises(ModelError, match="dtype 'int3'"):
        load_model(str(tiny_llama_folder), dtype="int3")


def test_an_adapter_s_folder_brings_its_base(adapter_folder, tiny_llama_folder):
    loaded = load_model(str(adapter_folder), device="cpu")
    assert (loaded.name, loaded.base, loaded.adapter) == (*[str(tiny_llama_folder)] * 2, str(adapter_folder))
    assert loaded.adapter_off_is_base
    assert not any(p.requires_grad for p in loaded.model.parameters())
    named = load_model(str(tiny_llama_folder), adapter=str(adapter_folder), trainable_adapter=True, device="cpu")
    assert {n for n, p in named.model.named_parameters() if p.requires_grad} == {
        n for n, _ in named.model.named_parameters() if "lora" in n
    }
    plain = load_model(str(tiny_llama_folder), device="cpu").model.eval()
    assert torch.equal(logits(loaded.model.eval()), logits(named.model.eval()))
    assert not torch.allclose(logits(loaded.model), logits(plain))


def test_a_model_that_knows_where_it_came_from_says_so(tmp_path, tiny_llama_folder):
    loaded = load_model(str(tiny_llama_folder), device="cpu")
    save_model(loaded.model, tmp_path / "aligned", tokenizer=loaded.tokenizer, base=str(tiny_llama_folder))
    aligned = load_model(str(tmp_path / "aligned"), device="cpu")
    assert aligned.base == str(tiny_llama_folder)
    assert not aligned.adapter_off_is_base
    add_lora(aligned.model, r=2, seed=0)
    tuned = add_lora(load_model(str(tmp_path / "aligned"), device="cpu").model, r=2, seed=0)
    save_adapter(tuned, tmp_path / "tuned", base=aligned.name, tokenizer=aligned.tokenizer)
    again = load_model(str(tmp_path / "tuned"), device="cpu")
    assert (again.name, again.base) == (str(tmp_path / "aligned"), str(tiny_llama_folder))
    assert not again.adapter_off_is_base
    assert load_model(str(tmp_path / "aligned"), base="owner/other", device="cpu").base == "owner/other"


@pytest.mark.parametrize("name", PACKAGED)
def test_the_packaged_names_resolve_into_the_package_or_say_how_to_make_them(name, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "files", lambda package: tmp_path / package)
    with pytest.raises(ModelError, match="antibody lab build"):
        resolve(name)
    (tmp_path / "antibody" / "lab" / "files" / name).mkdir(parents=True)
    assert resolve(name) == str(tmp_path / "antibody" / "lab" / "files" / name)


@pytest.mark.parametrize(
    ("without", "said"),
    [
        (["tokenizer.json"], "no tokenizer in the folder"),
        (["config.json"], "no config.json"),
        (["model.safetensors"], "no weights"),
    ],
)
def test_a_folder_that_lacks_a_part_names_it(copied, without, said):
    folder = copied(*without)
    with pytest.raises(ModelError, match=said) as caught:
        load_model(str(folder))
    assert str(folder) in str(caught.value)


def test_weights_that_would_be_random_are_refused(copied):
    folder = copied()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ModelError, match=r"weights are missing.*layers\.2"):
        load_model(str(folder))


def test_broken_files_are_the_user_s_to_mend(copied):
    folder = copied()
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ModelError, match="the model cannot be loaded"):
        load_model(str(folder))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="the tokenizer cannot be loaded"):
        load_model(str(folder))
    (folder / "antibody.json").write_text("[")
    with pytest.raises(ModelError):
        load_model(str(folder))


def test_a_tokenizer_larger_than_the_embeddings_is_refused(copied, tiny_mistral_folder):
    folder = copied("tokenizer.json", "tokenizer_config.json")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_mistral_folder / name, folder)
    with pytest.raises(ModelError, match=r"tokenizer has 569 tokens, the model 404 embeddings"):
        load_model(str(folder))


@pytest.mark.parametrize("name", ["./nowhere", "a/b/c", "/nowhere/at/all"])
def test_a_path_that_is_nowhere_is_not_looked_for_on_the_hub(name):
    with pytest.raises(ModelError, match="no such folder"):
        load_model(name)


def test_a_hub_id_that_cannot_be_reached_and_a_file_are_said_to_be_so(tiny_llama_folder):
    with pytest.raises(ModelError, match=r"nobody/nothing: the tokenizer cannot be loaded.*connection"):
        load_model("nobody/nothing")
    with pytest.raises(ModelError, match="a file, not a model's folder"):
        load_model(str(tiny_llama_folder / "config.json"))


@pytest.fixture
def adapter_copy(tmp_path, adapter_folder):
    """A copy of the adapter with some entries of its configuration changed."""

    def copy(**entries):
        folder = shutil.copytree(adapter_folder, tmp_path / "adapter")
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, **entries}))
        return folder

    return copy


def test_an_adapter_whose_base_is_gone_says_which_and_loads_where_it_is_given(adapter_copy, tiny_llama_folder):
    folder = adapter_copy(base_model_name_or_path="/gone/model")
    assert load_model(str(folder)).name == str(tiny_llama_folder)  # its provenance still knows
    (folder / "antibody.json").unlink()
    with pytest.raises(ModelError, match=r"base is not found \(/gone/model\).*--adapter"):
        load_model(str(folder))
    assert load_model(str(tiny_llama_folder), adapter=str(folder)).adapter == str(folder)


def test_an_adapter_of_another_model_is_refused_even_where_the_shapes_agree(adapter_folder, copied):
    other = copied()
    with pytest.raises(ModelError, match="the adapter was trained on"):
        load_model(str(other), adapter=str(adapter_folder))


def test_an_adapter_of_another_shape_is_refused(adapter_copy, tiny_folder):
    folder = adapter_copy(base_model_name_or_path="/gone/model")
    (folder / "tokenizer.json").unlink()  # or it would not fit in the first place
    with pytest.raises(ModelError, match=r"24 of the adapter's weights have no place.*another model"):
        load_model(str(tiny_folder("gpt_neo")), adapter=str(folder))


def test_an_adapter_of_another_rank_is_refused(adapter_copy):
    with pytest.raises(ModelError, match=r"shapes do not fit.*another model"):
        load_model(str(adapter_copy(r=2)))


def test_an_adapter_that_lacks_some_of_its_weights_is_refused(adapter_copy):
    folder = adapter_copy(target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    with pytest.raises(ModelError, match=r"4 of the adapter's weights.*o_proj"):
        load_model(str(folder))


def test_an_adapter_without_weights_is_refused(adapter_copy):
    folder = adapter_copy()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="the adapter cannot be loaded"):
        load_model(str(folder))


def test_a_model_s_folder_given_as_adapter_is_named(tiny_llama_folder):
    assert not is_adapter(str(tiny_llama_folder))
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        load_model(str(tiny_llama_folder), adapter=str(tiny_llama_folder))
