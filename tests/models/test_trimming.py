"""A trimmed vocabulary encodes the texts that it was made for as before, and the model says the same."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from antibody_llm.errors import ModelError
from antibody_llm.models.loading import load_model
from antibody_llm.models.saving import save_model
from antibody_llm.models.trimming import encoded, largest_difference, trim_vocabulary
from tiny import FAMILIES, SENTENCES, make_tiny_folder

TEXTS = [*SENTENCES[1:4], "Zoë pays 12 € to the fox."]
KINDS = [kind for kind in FAMILIES if kind not in ("qwen3", "gpt_neo")]


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tiny_folder):
    loaded = load_model(str(tiny_folder(request.param)))
    return loaded, trim_vocabulary(loaded.model.eval(), loaded.tokenizer, TEXTS, name="tiny")


def test_the_texts_have_the_same_tokens_and_the_vocabulary_is_smaller(pair):
    loaded, trimmed = pair
    assert len(trimmed.tokenizer) == len(trimmed.kept) < len(loaded.tokenizer)
    for old, new in zip(encoded(loaded.tokenizer, TEXTS), encoded(trimmed.tokenizer, TEXTS), strict=True):
        assert [trimmed.kept[id] for id in new] == old


def test_logits_of_kept_tokens_are_the_same(pair):
    loaded, trimmed = pair
    rows = [*encoded(loaded.tokenizer, TEXTS)]
    assert largest_difference(loaded.model, trimmed.model, trimmed.kept, rows) <= 1e-6
    with torch.no_grad():
        next(iter(trimmed.model.parameters())).add_(1)
    assert largest_difference(loaded.model, trimmed.model, trimmed.kept, rows) > 1e-3
    with torch.no_grad():
        next(iter(trimmed.model.parameters())).sub_(1)


def test_the_merges_are_closed_and_every_letter_is_kept(pair):
    before, after = (json.loads(tokenizer.backend_tokenizer.to_str())["model"] for tokenizer in
                     (pair[0].tokenizer, pair[1].tokenizer))  # fmt: skip
    assert 0 < len(after["merges"]) < len(before["merges"])
    for a, b in after["merges"]:
        assert {a, b, a + b} <= set(after["vocab"])
    assert {token for token in before["vocab"] if len(token) == 1} <= set(after["vocab"])
    assert sorted(after["vocab"].values()) == list(range(len(after["vocab"])))


def test_another_text_is_still_encoded_and_decoded_without_loss(pair):
    _, trimmed = pair
    text = "Quite other words: xylophone, 99 balloons."
    assert trimmed.tokenizer.decode(trimmed.tokenizer(text).input_ids, skip_special_tokens=True).strip() == text


def test_special_tokens_and_ends_are_kept_and_renumbered_through_a_save(pair, tmp_path):
    loaded, trimmed = pair
    save_model(trimmed.model, tmp_path / "m", tokenizer=trimmed.tokenizer)
    again = load_model(str(tmp_path / "m"))
    assert again.tokenizer.special_tokens_map == loaded.tokenizer.special_tokens_map
    chat = [{"role": "user", "content": "Hi"}]
    rendered = [t.apply_chat_template(chat, tokenize=False) for t in (loaded.tokenizer, again.tokenizer)]
    assert rendered[0] == rendered[1]
    for old, new in ((loaded.model.config, again.model.config),
                     (loaded.model.generation_config, again.model.generation_config)):  # fmt: skip
        ends = [c.eos_token_id if isinstance(c.eos_token_id, list) else [c.eos_token_id] for c in (old, new)]
        assert [trimmed.kept[id] for id in ends[1]] == ends[0]
    assert again.model.config.vocab_size == len(trimmed.kept) == again.model.get_output_embeddings().weight.shape[0]


def test_the_model_that_was_given_is_as_before(pair):
    loaded, _ = pair
    assert (
        loaded.model.config.vocab_size == loaded.model.get_input_embeddings().weight.shape[0] == len(loaded.tokenizer)
    )


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"), "WordLevel, not BPE"),
        (models.BPE({"a": 0, "a</w>": 1}, [], end_of_word_suffix="</w>"), "marked at the beginning or end"),
    ],
)
def test_a_tokenizer_that_cannot_be_trimmed_is_refused(tiny_llama_folder, model, why):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))
    with pytest.raises(ModelError, match=f"cannot be trimmed .*{why}.*vocabulary='whole'"):
        trim_vocabulary(load_model(str(tiny_llama_folder)).model, tokenizer, TEXTS, name="odd")


def test_a_model_with_tied_weights_stays_tied(tmp_path):
    loaded = load_model(str(make_tiny_folder("gemma", tmp_path)))
    assert loaded.model.config.tie_word_embeddings
    model = trim_vocabulary(loaded.model, loaded.tokenizer, TEXTS, name="tiny").model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
