import json
from pathlib import Path

import pytest

from antibody_llm.errors import ModelError
from antibody_llm.models import files
from antibody_llm.models.files import field, first_line, read_json, texts


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, '{"a": ' + "1" * 5000 + "}", "\udcff"])
def test_what_is_no_object_is_refused_by_its_file(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(ModelError, match=r"config\.json"):
        read_json(path)


def test_a_file_of_unlikely_size_is_refused_unread(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"a": "b" * 2**20}))
    assert read_json(tmp_path / "config.json")
    monkeypatch.setattr(files, "MAX_BYTES", 2**20)
    with pytest.raises(ModelError, match=r"1 MiB, where 1 are the most"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("value", "kinds"),
    [(5, (str,)), (["x"], (str,)), (True, (int,)), (True, (float,)), ("5", (int, list)), (2**70, (float,))],
)
def test_a_field_of_another_kind_is_refused_by_file_and_name(tmp_path, value, kinds):
    with pytest.raises(ModelError, match=r"a\.json: base is .*, not a"):
        field({"base": value}, tmp_path / "a.json", "base", *kinds)


def test_a_field_that_is_absent_or_null_is_none_and_a_whole_number_is_a_number(tmp_path):
    assert field({}, tmp_path, "r", int) is None
    assert field({"r": None}, tmp_path, "r", int) is None
    assert field({"r": 4}, tmp_path, "r", float) == 4.0
    assert texts({"t": ["a"]}, tmp_path, "t") == ["a"]
    with pytest.raises(ModelError, match="a text or a list of texts"):
        texts({"t": ["a", 5]}, tmp_path, "t")


def test_what_a_file_says_can_neither_steer_a_terminal_nor_fill_it():
    for text in ("\x1b[31mred", "a\nb", "\u202eright to left", "x" * 10**6):
        assert first_line(ValueError(text)).isprintable()
        with pytest.raises(ModelError) as caught:
            field({"r": text}, Path("config.json"), "r", int)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300
        assert len(first_line(ValueError(text))) <= 300
