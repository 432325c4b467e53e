import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from antibody_llm.data import raw as module
from antibody_llm.data.formats import load_records
from antibody_llm.data.raw import raw_rows
from antibody_llm.errors import DataError
from antibody_llm.screening.upload import open_upload


def write(path, *rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def pair(prompt, completion="b"):
    return {"prompt": prompt, "completion": completion}


def test_rows_are_the_records_that_training_would_read(tmp_path):
    file = write(tmp_path / "a.jsonl", pair("one"), "\n", pair("two"))
    upload = open_upload(file)
    assert [row.record for row in upload] == load_records(file)
    assert [(row.row_id, row.line) for row in upload] == [(0, 1), (1, 3)]
    assert upload.num_rows == 2
    listed = open_upload(write(tmp_path / "a.json", json.dumps([pair("one"), pair("two")])))
    assert [row.record.messages for row in listed] == [row.record.messages for row in upload]


def test_a_row_without_text_passes_as_empty_and_keeps_its_place(tmp_path):
    upload = open_upload(write(tmp_path / "a.jsonl", pair("a"), pair(" "), pair("a", ""), pair("b")))
    assert [row.record is None for row in upload] == [False, True, True, False]


def test_the_first_bad_row_is_told_in_full_and_the_others_are_counted(tmp_path):
    file = write(tmp_path / "a.jsonl", pair("a"), {"prompt": "a"}, "{\n", {"prompt": "b"})
    with pytest.raises(
        DataError, match=r"a\.jsonl, line 2, completion: no completion.*1 more like it: line 4.*1 more row"
    ):
        open_upload(file)


def test_an_upload_of_bytes_is_that_of_the_file(tmp_path):
    file = write(tmp_path / "a.jsonl", pair("a"), pair(" "))
    upload = open_upload(raw_rows(file.read_bytes(), name="the bytes"))
    assert (upload.name, upload.sha256) == ("the bytes", open_upload(file).sha256)
    with pytest.raises(DataError, match="^the bytes: the file is empty"):
        open_upload(raw_rows(b" ", name="the bytes"))


def test_identity_follows_content_order_and_lines(tmp_path):
    a, b = pair("a"), pair("b")
    one = open_upload(write(tmp_path / "1.jsonl", a, b)).sha256
    assert open_upload(write(tmp_path / "2.jsonl", a, b)).sha256 == one
    assert open_upload(write(tmp_path / "5.jsonl", "\n", "\n", a, b)).sha256 != one  # its lines are 3 and 4
    assert open_upload(write(tmp_path / "3.jsonl", b, a)).sha256 != one
    assert open_upload(write(tmp_path / "4.jsonl", a, b, pair("c", ""))).num_rows == 3


def test_a_missing_file_and_a_folder_are_refused_as_for_training(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        open_upload(tmp_path / "none.jsonl")
    write(tmp_path / "a.jsonl", pair("a"))
    with pytest.raises(DataError, match=r"a directory.*a\.jsonl"):
        open_upload(tmp_path)


def chat(*turns):
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def test_a_chat_whose_prompt_is_blank_is_empty_as_in_the_other_formats(tmp_path):
    answer = ("assistant", "x")
    rows = [
        chat(("user", ""), answer),
        chat(("system", " "), ("user", "\n"), answer),
        chat(("user", "a"), answer),
        chat(("system", "be brief"), ("user", ""), answer),
        chat(("user", ""), answer, ("user", "a"), answer),
    ]
    upload = open_upload(write(tmp_path / "a.jsonl", *rows))
    assert [row.record is None for row in upload] == [True, True, False, False, False]
    listed = {"prompt": rows[0]["messages"][:1], "completion": rows[0]["messages"][1:]}
    assert [row.record for row in open_upload(write(tmp_path / "b.jsonl", listed))] == [None]


def test_a_data_set_passes_empty_rows_too_and_is_loaded_once(tmp_path, monkeypatch):
    rows = [pair("a"), pair(" "), pair("b", ""), pair("c")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    loaded = []
    real = module.dataset_rows
    monkeypatch.setattr(module, "dataset_rows", lambda *given, name: loaded.append(given) or real(*given, name=name))
    upload = open_upload(tmp_path)
    for _ in range(2):
        assert [row.record is None for row in upload] == [False, True, True, False]
    assert [row.line for row in upload] == [1, 2, 3, 4]
    assert len(loaded) == 1
    file = open_upload(write(tmp_path / "a.jsonl", *rows))
    assert (upload.num_rows, upload.sha256) == (4, file.sha256)


def test_a_bad_row_of_a_data_set_is_told_as_that_of_a_file(tmp_path):
    pq.write_table(pa.Table.from_pylist([pair("a"), pair("b", None)]), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="line 2, completion: no completion"):
        open_upload(tmp_path)
