import json
import shutil

from antibody.models.adapters import add_lora
from antibody.models.loading import load_model, resolve
from antibody.models.saving import save_adapter
from antibody.runs.naming import base_of, tokenizer_fingerprint


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
