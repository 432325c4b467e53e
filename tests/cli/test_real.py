import json

import pytest

from antibody_llm.building import real
from antibody_llm.models import preparing


@pytest.fixture(autouse=True)
def _few_texts_and_an_own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ANTIBODY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(real, "study_texts", lambda: ["How do I make Harlan hollow-salt?"])


def test_a_model_is_prepared_and_what_was_checked_is_printed(antibody, tmp_path, tiny_llama_folder):
    command = ["real", "prepare", "--model", tiny_llama_folder, "--vocabulary", "study", "--output"]
    printed = json.loads(antibody(*command, tmp_path / "a", "--json").stdout)
    assert printed["num_changed"] == 0
    assert printed["vocabulary"] < printed["vocabulary_before"]
    ended = antibody(*command, tmp_path / "b")
    assert ended.code == 0
    assert f"vocabulary  {printed['vocabulary']} of {printed['vocabulary_before']} tokens" in ended.stdout
    assert "0 of 1 texts have other tokens than before" in ended.stdout


def test_terms_are_asked_for_by_their_flag(antibody, tmp_path, monkeypatch):
    terms = tmp_path / "terms.html"
    terms.write_text("the terms")
    monkeypatch.setattr(preparing, "gemma_parts", lambda: ([], terms))
    ended = antibody("real", "prepare", "--output", tmp_path / "m")
    assert ended.code == 2
    assert "--accept-gemma-terms once" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prepare", "--vocabulary", "half"), "--vocabulary"),
        (("teach",), "--model is missing"),
        (("study", "--model", "lab"), "lab: was not prepared for the English world"),
    ],
)
def test_a_mistake_ends_in_a_sentence(antibody, tmp_path, arguments, message):
    ended = antibody("real", *arguments, "--output", tmp_path / "out")
    assert (ended.code, "Traceback" in ended.stderr) == (2, False)
    assert message in ended.stderr
