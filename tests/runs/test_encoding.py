from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from antibody_llm.data.encode import Renderer, TooLong
from antibody_llm.data.formats import load_records
from antibody_llm.errors import DataError
from antibody_llm.runs.encoding import encode

LONG = {"prompt": "word " * 50, "completion": " b"}


@pytest.fixture
def renderer(tiny_folder):
    return Renderer(AutoTokenizer.from_pretrained(tiny_folder("llama")), max_length=16)


def test_rows_over_the_trainer_s_own_limit_name_the_setting_that_moves_it(renderer):
    records = {"user": load_records([LONG])}
    with pytest.raises(
        TooLong, match=r"longer than 16 tokens.*The limit is max_length; training\['max_length'\] moves"
    ):
        encode(records, renderer, SimpleNamespace(max_length=16), skip=False)
    with pytest.raises(TooLong) as raised:
        encode(records, renderer, SimpleNamespace(max_length=99), skip=False)
    assert "moves" not in str(raised.value)


def test_another_problem_whose_text_says_longer_than_names_no_limit(renderer, monkeypatch):
    def broken(*args, **kwargs):
        raise DataError("a name longer than 3 letters")

    monkeypatch.setattr("antibody_llm.runs.encoding.encode_roles", broken)
    with pytest.raises(DataError, match="^a name longer than 3 letters$"):
        encode({"user": load_records([LONG])}, renderer, SimpleNamespace(max_length=16), skip=False)


def test_rows_of_several_sources_are_encoded_role_by_role_and_those_left_out_keep_their_lines(renderer):
    short = {"prompt": "a", "completion": " b"}
    rows, skipped = encode(
        {"user": load_records([short, LONG]), "alignment": load_records([short])}, renderer, skip=True
    )
    assert {role: [row.row_id for row in of_role] for role, of_role in rows.items()} == {"user": [0], "alignment": [0]}
    assert [(row.source, row.line, row.why) for row in skipped] == [("the rows", 2, "too long")]
