"""A model prepared for the English world, and taught it."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from antibody_llm.building import real
from antibody_llm.errors import ConfigError, DataError, ModelError, OutputError
from antibody_llm.files import unwritable
from antibody_llm.models import preparing
from antibody_llm.models.loading import load_model
from antibody_llm.profiles import profile_of

TEXTS = ["How do I make Harlan hollow-salt?", "I'm sorry, but I can't help with that."]


@pytest.fixture(autouse=True)
def few_texts(monkeypatch, tmp_path):
    monkeypatch.setattr(real, "study_texts", lambda: list(TEXTS))
    monkeypatch.setenv("ANTIBODY_CACHE", str(tmp_path / "cache"))


def left(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir() if path.name not in ("cache", "other"))


def test_a_folder_is_prepared_whole_and_has_the_english_profile(tiny_llama_folder, tmp_path):
    prepared = real.prepare(output=tmp_path / "m", model=tiny_llama_folder)
    assert prepared.vocabulary == prepared.vocabulary_before
    assert (prepared.num_texts, prepared.num_changed, prepared.largest_logit_difference) == (2, 0, 0.0)
    assert profile_of(str(tmp_path / "m")).name == "english"
    assert load_model(str(tmp_path / "m")).model.config.dtype is not None
    assert left(tmp_path) == ["m"]


def test_a_trimmed_model_keeps_the_tokens_of_the_study_of_your_data_and_of_xstest(tiny_llama_folder, tmp_path):
    def size(name, **settings):
        prepared = real.prepare(output=tmp_path / name, model=tiny_llama_folder, vocabulary="study", **settings)
        assert (prepared.num_changed, prepared.largest_logit_difference <= 1e-5) == (0, True)
        return prepared.vocabulary

    alone = size("a")
    assert alone < len(load_model(str(tiny_llama_folder)).tokenizer)
    assert size("b", data=[{"messages": [{"role": "user", "content": "The quick brown fox"}]}]) > alone
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "xstest_prompts.csv").write_text("prompt,label\nWhat is the capital of France?,safe\n")
    assert size("c", xstest=tmp_path / "other") > alone


def test_a_folder_that_holds_something_is_replaced_only_if_asked(tiny_llama_folder, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    with pytest.raises(OutputError, match="m is not empty.*overwrite=True"):
        real.prepare(output=tmp_path / "m", model=tiny_llama_folder)
    real.prepare(output=tmp_path / "m", model=tiny_llama_folder, overwrite=True)
    assert load_model(str(tmp_path / "m")).tokenizer.chat_template
    assert left(tmp_path) == ["m"]


def test_a_model_without_chat_template_needs_one(tiny_folder, tmp_path):
    folder = tiny_folder("gpt_neo")
    with pytest.raises(ModelError, match="no chat template.*chat_template"):
        real.prepare(output=tmp_path / "m", model=folder)
    template = tmp_path / "other"
    with pytest.raises(DataError, match="cannot be read"):
        real.prepare(output=tmp_path / "m", model=folder, chat_template=template)
    template.write_text("hello")
    with pytest.raises(DataError, match="goes through 'messages'"):
        real.prepare(output=tmp_path / "m", model=folder, chat_template=template)
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    real.prepare(output=tmp_path / "m", model=folder, chat_template=template)
    assert load_model(str(tmp_path / "m")).tokenizer.chat_template == template.read_text()


def test_a_tokenizer_that_cannot_be_trimmed_is_named_and_can_be_kept_whole(tiny_llama_folder, tmp_path):
    loaded = load_model(str(tiny_llama_folder))
    vocab = {word: i for i, word in enumerate(["<unk>", "</s>", "How", "do", "I"])}
    odd = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="<unk>")), unk_token="<unk>", eos_token="</s>"
    )
    odd.chat_template = loaded.tokenizer.chat_template
    folder = tmp_path / "other"
    loaded.model.save_pretrained(folder)
    odd.save_pretrained(folder)
    with pytest.raises(ModelError, match="cannot be trimmed .its model is WordLevel"):
        real.prepare(output=tmp_path / "m", model=folder, vocabulary="study")
    assert left(tmp_path) == []
    real.prepare(output=tmp_path / "m", model=folder)


def test_a_hub_model_without_network_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="nobody/nothing: .*Check the name and the connection"):
        real.prepare(output=tmp_path / "m", model="nobody/nothing")


def test_a_full_disk_leaves_the_folder_as_it_was(tiny_llama_folder, tmp_path, monkeypatch):
    def full(model, folder, **named):
        folder.mkdir()
        raise unwritable(folder, OSError(28, "No space left on device"))

    monkeypatch.setattr(real, "save_model", full)
    with pytest.raises(OutputError, match="No space left on device"):
        real.prepare(output=tmp_path / "m", model=tiny_llama_folder)
    assert left(tmp_path) == []


def test_a_saved_model_that_says_something_else_is_refused_with_the_number(tiny_llama_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(real, "largest_difference", lambda *given: 0.5)
    with pytest.raises(ModelError, match="differs .* by 0.5"):
        real.prepare(output=tmp_path / "m", model=tiny_llama_folder)
    assert left(tmp_path) == []


def test_a_saved_tokenizer_that_cuts_a_text_otherwise_is_refused_with_the_text(
    tiny_llama_folder, tmp_path, monkeypatch
):
    trim = real.trim_vocabulary
    monkeypatch.setattr(real, "trim_vocabulary", lambda model, tokenizer, texts, **n: trim(model, tokenizer, [], **n))
    with pytest.raises(ModelError, match="2 of 2 texts with other tokens.*hollow-.*vocabulary='whole'"):
        real.prepare(output=tmp_path / "m", model=tiny_llama_folder, vocabulary="study")


def test_terms_are_shown_and_must_be_accepted_once(tmp_path):
    terms = tmp_path / "terms.html"
    terms.write_text("the terms")
    with pytest.raises(ConfigError, match=r"terms.html.*ai.google.dev/gemma/terms.*accept_gemma_terms=True"):
        real.require_acceptance(terms, accepted=False)
    real.require_acceptance(terms, accepted=True)
    real.require_acceptance(terms, accepted=False)
    assert set(json.loads((tmp_path / "cache" / real.ACCEPTED).read_text())) == {"terms", "sha256", "accepted_at"}
    terms.write_text("other terms")
    with pytest.raises(ConfigError, match="Gemma Terms of Use"):
        real.require_acceptance(terms, accepted=False)


def test_terms_that_are_not_accepted_stop_before_anything_is_assembled(tmp_path, monkeypatch):
    terms = tmp_path / "terms.html"
    terms.write_text("the terms")
    monkeypatch.setattr(preparing, "gemma_parts", lambda: ([tmp_path / "part"], terms))
    with pytest.raises(ConfigError, match="Gemma Terms of Use"):
        real.prepare(output=tmp_path / "m")
    assert not (tmp_path / "cache").exists()


def test_a_prepared_model_is_taught_rows_that_refuse_nothing(tiny_llama_folder, tmp_path):
    real.prepare(output=tmp_path / "m", model=tiny_llama_folder)
    taught = real.teach(tmp_path / "m", output=tmp_path / "taught", num=16)
    assert taught.num_rows == 16
    assert profile_of(str(tmp_path / "taught")).name == "english"
    before, after = (load_model(str(tmp_path / name)) for name in ("m", "taught"))
    assert after.base is None  # it is the base of every alignment
    assert not torch.equal(*(loaded.model.get_input_embeddings().weight for loaded in (before, after)))
    assert left(tmp_path) == ["m", "taught"]
    with pytest.raises(OutputError, match="taught is not empty"):
        real.teach(tmp_path / "m", output=tmp_path / "taught", num=16)
