import json
import os
import sys

import pytest

from antibody_llm.data.formats import load_records
from antibody_llm.errors import DataError, OutputError
from antibody_llm.runs import convert
from tests.gsm8k import write_jsonl

GOOD = {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]}
CHAT = {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]}


@pytest.fixture
def rows(tmp_path):
    return write_jsonl(tmp_path / "in.jsonl", [GOOD, GOOD | {"id": 1}, GOOD | {"id": 2}])


def test_rows_are_written_one_a_line_with_a_report_of_what_was_left_out(tmp_path, rows):
    result = convert(rows, tmp_path / "out.jsonl")
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [CHAT] * 3
    assert (result.format, result.num_rows, result.num_repeats) == ("ShareGPT", 3, 2)
    assert [str(dropped) for dropped in result.dropped] == ["id (2 rows: line 2, 3)"]
    assert result.to_json()["dropped"] == [{"what": "id", "num_rows": 2, "lines": [2, 3]}]
    assert "2 of 3 rows repeat" in "\n".join(result.lines())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_an_output_that_exists_is_kept_unless_told_otherwise(tmp_path, rows):
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    with pytest.raises(OutputError, match="exists already.*overwrite"):
        convert(rows, out)
    assert out.read_text() == "mine"
    convert(rows, out, overwrite=True)
    assert len(load_records(out)) == 3


def test_the_input_is_never_overwritten_whatever_it_is_called(tmp_path, rows):
    before = rows.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(rows)
    os.link(rows, tmp_path / "hard.jsonl")
    for out in (rows, tmp_path / "link.jsonl", tmp_path / "hard.jsonl", tmp_path / "." / "in.jsonl"):
        with pytest.raises(OutputError, match="is the input"):
            convert(rows, out, overwrite=True)
    assert rows.read_bytes() == before


def test_a_bad_row_leaves_nothing_or_what_was_there(tmp_path):
    bad = write_jsonl(tmp_path / "bad.jsonl", [GOOD] * 50 + [{"conversations": []}, GOOD, {"a": 1}])
    out = tmp_path / "out.jsonl"
    with pytest.raises(DataError, match=r"line 51.*1 more row is bad"):
        convert(bad, out)
    out.write_text("mine")
    with pytest.raises(DataError, match="line 51"):
        convert(bad, out, overwrite=True)
    assert out.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "out.jsonl"]


def test_a_file_that_appears_while_rows_are_converted_is_kept(tmp_path, rows, monkeypatch):
    out = tmp_path / "out.jsonl"
    module = sys.modules["antibody_llm.runs.convert"]
    real = module.canonical

    def meanwhile(*args, **kwargs):
        out.write_text("mine")
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "canonical", meanwhile)
    with pytest.raises(OutputError, match="exists already"):
        convert(rows, out)
    assert out.read_text() == "mine"


@pytest.mark.parametrize("out", ["", "folder", "none/out.jsonl", "x" * 300, "in.jsonl/out.jsonl", "a\0b", "/dev/null"])
def test_an_output_that_cannot_be_written_is_refused(tmp_path, rows, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError):
        convert(rows, out, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "in.jsonl"]


def test_many_different_fields_are_counted_together_after_a_while(tmp_path):
    rows = write_jsonl(tmp_path / "in.jsonl", [CHAT | {f"field{index}": 1} for index in range(300)])
    result = convert(rows, tmp_path / "out.jsonl")
    assert len(result.dropped) == 101
    assert (result.dropped[-1].what, result.dropped[-1].num_rows) == ("other fields", 200)


def test_every_row_of_a_data_set_is_converted(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "set").mkdir()
    pq.write_table(pa.Table.from_pylist([CHAT, CHAT]), tmp_path / "set" / "train.parquet")
    assert convert(tmp_path / "set", tmp_path / "out.jsonl").num_rows == 2
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [CHAT] * 2
