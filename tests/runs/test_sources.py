import json
import os

import pytest

from antibody_llm.data.source import read_source
from antibody_llm.errors import DataError
from antibody_llm.runs.sources import opened, read_refusals, read_rows
from tests.gsm8k import write_jsonl

ROW = {"prompt": "a", "completion": "b"}
CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def test_rows_that_repeat_are_kept_and_counted_in_a_warning(tmp_path, caplog):
    path = write_jsonl(
        tmp_path / "rows.jsonl", [ROW, {"prompt": "c", "completion": "d"}, ROW, {"prompt": "A", "completion": "b"}]
    )
    assert len(read_rows(path, name="data rows", upload=True).records) == 4
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"{path}: 1 of 4 rows repeat an earlier one (line 3 as line 1); 1 of 4 differ from")
    caplog.clear()
    read_rows([ROW, ROW], name="data rows", upload=True)
    assert caplog.records[0].getMessage().startswith("data rows: 1 of 2 rows repeat")


def test_rows_that_do_not_repeat_or_are_the_provider_s_give_no_warning(caplog):
    read_rows([ROW, {"prompt": "c", "completion": "d"}], name="data rows", upload=True)
    read_rows([ROW, ROW], name="alignment_data rows")
    assert not caplog.records


def test_rows_given_in_python_are_checked_as_those_of_a_file():
    with pytest.raises(DataError, match="data rows, line 2, completion: the completion is empty"):
        read_rows([ROW, ROW | {"completion": ""}], name="data rows")
    with pytest.raises(DataError, match=r"data rows, line 2, messages\[0\]\.content: holds bytes, which JSON cannot"):
        read_rows([CHAT, {"messages": [{"role": "user", "content": b"a"}]}], name="data rows")
    with pytest.raises(DataError, match="data rows: there is no row"):
        read_rows([], name="data rows")


def test_a_file_and_the_rows_in_it_have_one_fingerprint(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [CHAT, CHAT])
    source = read_rows(path, name="data rows")
    assert source.sha256 == read_rows([CHAT, CHAT], name="data rows").sha256
    assert {record.source for record in source.records} == {str(path)}


def test_an_error_in_a_home_folder_names_it_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_jsonl(tmp_path / "rows.jsonl", [ROW, {"prompt": "a"}])
    for rows, message in (("~/rows.jsonl", "^~/rows.jsonl, line 2, completion"), ("~", r"^~: a directory.*rows.jsonl")):
        with pytest.raises(DataError, match=message):
            read_rows(rows, name="data rows")


def test_a_pipe_is_copied_once_and_gone_through_again(tmp_path):
    reading, writing = os.pipe()
    os.write(writing, (json.dumps(ROW) + "\n{}\n").encode())
    os.close(writing)
    name = f"/dev/fd/{reading}"
    with opened(name, name="data rows") as rows:
        assert list(rows) == list(rows) == [(1, ROW), (2, {})]
        with pytest.raises(DataError, match=f"^{name}, line 2"):
            read_source(rows)
    os.close(reading)


def test_an_error_of_a_list_of_refusals_names_it_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "refusals.txt").write_text(" ")
    with pytest.raises(DataError, match=r"^~/refusals\.txt: the file is empty"):
        read_refusals("~/refusals.txt")
