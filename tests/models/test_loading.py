import contextlib
import io
import json
import shutil

import pytest
import torch
from hypothesis import given, settings, strategies
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from antibody_llm.errors import ModelError
from antibody_llm.models import loading, names
from antibody_llm.models.adapters import add_lora
from antibody_llm.models.loading import load_model
from antibody_llm.models.names import PACKAGED, is_adapter, read_provenance, resolve
from antibody_llm.models.saving import save_adapter, save_model
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
    monkeypatch.setattr(names, "files", lambda package: tmp_path / package)
    with pytest.raises(ModelError, match="antibody lab build"):
        resolve(name)
    (tmp_path / "antibody_llm" / "lab" / "files" / name).mkdir(parents=True)
    assert resolve(name) == str(tmp_path / "antibody_llm" / "lab" / "files" / name)


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
    tokenizer = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="the tokenizer cannot be loaded"):
        load_model(str(folder))
    (folder / "tokenizer.json").write_text(tokenizer)
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ModelError, match="the model cannot be loaded"):
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
    with pytest.raises(ModelError, match=r"base is not found \('/gone/model'\).*as adapter"):
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


EVIL = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"


def rewrite(path, **entries):
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **entries}))


@pytest.mark.parametrize("answer", ["y\n" * 100, ""])
def test_a_model_that_needs_its_own_code_is_refused_and_standard_input_is_never_asked(copied, monkeypatch, answer):
    folder = copied()
    (folder / "evil.py").write_text(EVIL)
    rewrite(
        folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    )
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with pytest.raises(ModelError, match=r"needs code of its own \(auto_map of its .*never run here"):
        load_model(str(folder), device="cpu")
    assert not list(folder.rglob("ran"))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_a_known_architecture_with_code_beside_it_loads_without_the_code(copied, monkeypatch, file, adapter_folder):
    """As Phi's: transformers has the architecture, and the folder brings an older implementation of it too."""
    folder = copied()
    (folder / "evil.py").write_text(EVIL)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(EVIL)
    classes = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": ["evil.T", "evil.T"]}
    rewrite(folder / file, auto_map=classes)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    load_model(str(folder), device="cpu")
    assert not list(folder.rglob("ran"))


def test_code_named_by_an_adapter_or_its_tokenizer_is_not_run(adapter_copy, monkeypatch):
    folder = adapter_copy(auto_mapping={"base_model_class": "C", "parent_library": "evil"}, megatron_core="evil")
    (folder / "evil.py").write_text(EVIL)
    rewrite(folder / "tokenizer_config.json", tokenizer_class="T", auto_map={"AutoTokenizer": ["evil.T", None]})
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with contextlib.suppress(ModelError):
        load_model(str(folder), device="cpu")
    assert not list(folder.rglob("ran"))


def test_a_kernel_named_in_the_configuration_is_code_too(copied):
    folder = copied()
    rewrite(folder / "config.json", attn_implementation="somebody/kernel")
    with pytest.raises(ModelError, match=r"attn_implementation of config\.json.*never run"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_weights_that_are_no_numbers_are_refused_by_name(copied, number, key):
    folder = copied()
    weights = load_file(folder / "model.safetensors")
    weights[key].view(-1)[-1] = number
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"1 weight holds NaN or infinite numbers \(first: {key}\)"):
        load_model(str(folder), device="cpu")


def test_a_layer_that_config_json_does_not_count_is_not_left_out_in_silence(copied):
    folder = copied()
    rewrite(folder / "config.json", num_hidden_layers=1, layer_types=["full_attention"])
    with pytest.raises(ModelError, match=r"9 weights belong to layers that config\.json does not count .*layers\.1"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize("entries", [{"num_hidden_layers": 10**9}, {"num_labels": 2**70}, {"hidden_size": -1}])
def test_a_count_that_would_never_be_built_is_refused(copied, entries):
    folder = copied()
    rewrite(folder / "config.json", **entries)
    with pytest.raises(ModelError, match=rf"{next(iter(entries))} in config\.json is .* 21 tensors"):
        load_model(str(folder), device="cpu")


def test_a_pickled_model_loads_and_runs_nothing(copied, tmp_path):
    folder = copied()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert load_model(str(folder), device="cpu")

    class Runs:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"lm_head.weight": Runs()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="the model cannot be loaded"):
        load_model(str(folder), device="cpu")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("shard", ["../elsewhere.safetensors", "/etc/passwd", "absent.safetensors", 5, ["x"]])
def test_a_shard_outside_the_folder_or_absent_is_refused_by_its_index(copied, shard):
    folder = copied()
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"index\.json: .* is no file in this folder"):
        load_model(str(folder), device="cpu")


def test_a_folder_of_both_a_model_and_an_adapter_is_refused(copied, adapter_folder):
    folder = copied()
    for file in adapter_folder.glob("adapter_*"):
        shutil.copy(file, folder)
    with pytest.raises(ModelError, match="both a model and an adapter"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("file", "entries", "said"),
    [
        ("generation_config.json", {"eos_token_id": "x"}, r"eos_token_id in generation_config\.json is 'x'"),
        ("generation_config.json", {"eos_token_id": [1, 4000]}, "0 to 403"),
        ("config.json", {"eos_token_id": 4000}, r"eos_token_id in config\.json is 4000"),
        ("config.json", {"model_type": ["x"]}, "the (tokenizer|model) cannot be loaded"),
        ("config.json", {"hidden_size": "x"}, "the (tokenizer|model) cannot be loaded"),
        ("tokenizer_config.json", {"model_max_length": "x"}, "model_max_length"),
        ("tokenizer_config.json", {"chat_template": 5}, "chat_template"),
        ("antibody.json", {"base": 5}, r"antibody\.json: base is 5, not a text"),
        ("antibody.json", {"base": ["x"]}, r"antibody\.json: base"),
        ("antibody.json", {"deployment": "x"}, r"deployment is 'x', not an object"),
        ("antibody.json", {"deployment": {"system_prefix": 5}}, "system_prefix is 5, not a text"),
        ("antibody.json", {"deployment": {"system_prefix": None}}, "system_prefix.* is null"),
    ],
    ids=str,
)
def test_a_field_of_the_wrong_kind_is_refused_by_its_file(copied, file, entries, said):
    folder = copied("chat_template.jinja")  # which would go before the one in tokenizer_config.json
    rewrite(folder / file, **entries)
    with pytest.raises(ModelError, match=said):
        load_model(str(folder), device="cpu") and read_provenance(str(folder))


@pytest.mark.parametrize("file", ["generation_config.json", "tokenizer_config.json", "config.json", "antibody.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_file_that_is_no_object_is_refused_and_not_passed_over(copied, file, content):
    folder = copied()
    (folder / file).write_bytes(content)
    with pytest.raises(ModelError, match=file):
        load_model(str(folder), device="cpu")


def test_a_null_in_provenance_is_as_if_it_were_not_there(copied):
    folder = copied()
    rewrite(folder / "antibody.json", base=None, deployment=None)
    assert read_provenance(str(folder)) == {}
    assert load_model(str(folder), device="cpu").base is None


def test_a_tokenizer_s_panic_is_not_ours(copied, monkeypatch):
    class PanicException(BaseException):
        """As the Rust libraries raise it."""

    def panic(*_, **__):
        raise PanicException("index out of bounds")

    monkeypatch.setattr(loading.AutoTokenizer, "from_pretrained", panic)
    with pytest.raises(ModelError, match=r"tokenizer cannot be loaded \(index out of bounds\)"):
        load_model(str(copied()), device="cpu")


def test_a_tokenizer_that_fails_only_where_it_encodes_is_refused_at_once(copied):
    folder = copied()
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"]["special_tokens"] = {}  # which its template names: the Rust library panics
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="the tokenizer cannot be loaded"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize("name", ["a" * 5000, "~nosuchuser/x", "a\0b", "\x1b[31m", "/" + "x/" * 3000, ""], ids=range(6))
def test_a_name_that_no_folder_can_have_is_refused_in_print(name):
    with pytest.raises(ModelError) as caught:
        load_model(name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_a_hub_adapter_s_files_are_read_before_peft_reads_them(adapter_copy, monkeypatch, tiny_llama_folder):
    folder = adapter_copy(modules_to_save=["lm_head"])
    monkeypatch.setattr(names, "snapshot_download", lambda name, **_: str(folder))
    with pytest.raises(ModelError, match="whole layers"):
        load_model(str(tiny_llama_folder), adapter="owner/adapter", device="cpu")


WRONG = [
    5,
    -1,
    1.5,
    True,
    None,
    "x",
    "",
    [],
    ["a"],
    [1],
    {},
    {"a": 1},
    float("inf"),
    2**70,
    "\x1b[31m",
    "../..",
    [[["a"], 2]],
]


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory, tiny_llama_folder, adapter_folder):
    folder = tmp_path_factory.mktemp("spoilt")
    return [shutil.copytree(place, folder / place.name) for place in (tiny_llama_folder, adapter_folder)]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=strategies.data())
def test_whatever_stands_in_a_field_the_model_computes_or_is_refused_in_print(spoilt, data):
    place = data.draw(strategies.sampled_from(spoilt))
    files = sorted(file.name for file in place.glob("*.json") if file.name != "tokenizer.json")
    path = place / data.draw(strategies.sampled_from(files))
    before, refusal = path.read_text(), ""
    keys = [*json.loads(before), "auto_map", "chat_template", "deployment", "exclude_modules", "quantization_config"]
    try:
        rewrite(path, **{data.draw(strategies.sampled_from(keys)): data.draw(strategies.sampled_from(WRONG))})
        loaded = load_model(str(place), device="cpu")
        logits(loaded.model)
        loaded.tokenizer("Hello")
    except ModelError as error:
        refusal = str(error)
    finally:
        path.write_text(before)
    assert not refusal or refusal.isprintable()
    assert len(refusal) < 1000
