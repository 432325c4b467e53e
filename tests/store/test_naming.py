import json
import shutil

import pytest

from antibody_llm.errors import ModelError
from antibody_llm.models.adapters import add_lora
from antibody_llm.models.loading import load_model
from antibody_llm.models.names import resolve
from antibody_llm.models.saving import save_adapter
from antibody_llm.profiles import profile_of
from antibody_llm.store.naming import (
    BASE_WEIGHTS,
    base_of,
    described_model,
    tokenizer_fingerprint,
    weights_fingerprint,
)


def test_the_base_is_the_one_that_loading_finds(tmp_path):
    lab = load_model("lab")
    model = add_lora(lab.model, r=2, targets=["q_proj"], seed=0)
    save_adapter(model, tmp_path / "a", base="lab", tokenizer=lab.tokenizer)
    aligned = load_model("lab-aligned")
    again = add_lora(aligned.model, r=2, targets=["q_proj"], seed=0)
    save_adapter(again, tmp_path / "b", base="lab-aligned", tokenizer=aligned.tokenizer)
    unnamed = shutil.copytree(resolve("lab-aligned"), tmp_path / "c")
    (unnamed / "antibody.json").unlink()
    a, b, c = (str(tmp_path / name) for name in "abc")
    for name, adapter in (("lab", None), ("lab-aligned", None), (a, None), (b, None), ("lab", a), (c, None)):
        assert base_of(name, adapter) == load_model(name, adapter=adapter).base


def test_a_tokenizer_is_told_from_another_and_not_from_its_copy(tmp_path):
    assert tokenizer_fingerprint("somebody/model") is None
    one = tokenizer_fingerprint("lab")
    copied = shutil.copytree(resolve("lab"), tmp_path / "copied")
    assert tokenizer_fingerprint(str(copied)) == one
    settings = json.loads((copied / "tokenizer_config.json").read_text()) | {"eos_token": "<other>"}
    (copied / "tokenizer_config.json").write_text(json.dumps(settings))
    assert tokenizer_fingerprint(str(copied)) != one


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("model.safetensors", "weights"),
        ("chat_template.jinja", "tokenizer"),
        ("additional_chat_templates/tools.jinja", "tokenizer"),
        ("tokenizer.json", "tokenizer"),
        ("config.json", "settings"),
        ("generation_config.json", "settings"),
        ("antibody.json", "settings"),
        ("anchors.safetensors", "settings"),
    ],
)
def test_a_byte_anywhere_in_what_decides_a_result_changes_the_description(tmp_path, file, changed):
    copied = shutil.copytree(resolve("lab-aligned"), tmp_path / "copied")
    (copied / "additional_chat_templates").mkdir()
    (copied / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    before = described_model(str(copied))
    content = bytearray((copied / file).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / file).write_bytes(content)
    if file == "antibody.json":
        (copied / file).write_text("{}")
    after = described_model(str(copied))
    assert [key for key in before if before[key] != after[key]] == [changed]


def test_an_adapter_is_refused_on_other_weights_than_it_was_trained_on(tmp_path):
    base = shutil.copytree(resolve("lab"), tmp_path / "base")
    lab = load_model(str(base))
    model = add_lora(lab.model, r=2, targets=["q_proj"], seed=0)
    provenance = {BASE_WEIGHTS: weights_fingerprint(str(base))}
    adapter = str(tmp_path / "adapter")
    save_adapter(model, adapter, base=str(base), tokenizer=lab.tokenizer, provenance=provenance)
    alone, named = described_model(adapter), described_model(adapter, on=str(base))
    assert alone["under"] == described_model(str(base))
    assert named["under"] is None  # described beside it
    shutil.copy(f"{resolve('lab-aligned')}/model.safetensors", base)
    for on in (None, str(base)):
        with pytest.raises(ModelError, match=r"trained on .*base as it was then, and other weights are there now"):
            described_model(adapter, on=on)
    assert described_model(adapter, on="lab")  # the very weights, in another place


def test_an_adapter_that_was_stored_under_the_packages_former_name_still_loads_and_is_the_labs(tmp_path):
    aligned = load_model("lab-aligned")
    model = add_lora(aligned.model, r=2, targets=["q_proj"], seed=0)
    save_adapter(model, tmp_path / "a", base="lab-aligned", tokenizer=aligned.tokenizer)
    config = tmp_path / "a" / "adapter_config.json"
    former = "/gone/site-packages/antibody/lab/files/lab-aligned"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": former}))
    assert load_model(str(tmp_path / "a")).name == "lab-aligned"
    assert profile_of(str(tmp_path / "a")).name == "lab"
