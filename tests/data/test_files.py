import json
import tracemalloc

import pytest

from antibody_llm.data import files as module
from antibody_llm.data.files import iter_json_rows
from antibody_llm.data.problems import BadRow, name_of
from antibody_llm.errors import DataError


def write(path, content: bytes):
    path.write_bytes(content)
    return path


def test_rows_come_one_by_one_with_their_lines_and_a_broken_one_in_its_place(tmp_path):
    file = write(tmp_path / "a.jsonl", '\n{"a": 1}\r\n{"a"\n   \n{"a": "x\u2028y"}'.encode())
    (first, row), (second, bad), (third, last) = iter_json_rows(file)
    assert (first, second, third) == (2, 3, 5)
    assert row == {"a": 1}
    assert isinstance(bad, BadRow)
    assert "broken JSON" in str(bad)
    assert last == {"a": "x\u2028y"}


def test_what_stands_before_a_bad_byte_is_read_before_it_is_refused(tmp_path):
    file = write(tmp_path / "a.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n')
    rows = iter_json_rows(file)
    assert next(rows) == (1, {"a": 1})
    with pytest.raises(DataError, match=r"line 2: not UTF-8 \(byte 0xE9 at offset 16\)"):
        next(rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b" \n\n", "is empty"), (b"\xef\xbb\xbf{}", "byte order mark"), (b"[]", "list is empty")],
)
def test_a_file_that_cannot_be_read_at_all_is_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        list(iter_json_rows(write(tmp_path / "a.json", content)))


def test_a_json_list_gives_the_rows_that_its_lines_would(tmp_path):
    file = write(tmp_path / "a.json", b'\n[{"a": 1},\n {"a": 2}]')
    assert list(iter_json_rows(file)) == [(2, {"a": 1}), (3, {"a": 2})]


def test_a_long_file_is_never_in_memory_as_a_whole(tmp_path):
    file = write(
        tmp_path / "a.jsonl", b'{"a": "' + b"x" * 10_000 + b'"}\n' + (b'{"a": "' + b"y" * 10_000 + b'"}\n') * 999
    )
    tracemalloc.start()
    try:
        assert sum(1 for _ in iter_json_rows(file)) == 1000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000  # of 10 MB
    finally:
        tracemalloc.stop()


def bad(content, tmp_path):
    ((_, problem),) = iter_json_rows(write(tmp_path / "a.jsonl", content))
    assert isinstance(problem, BadRow)
    return problem


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ('{"a": 1, "a": 1}', "a"),
        ('{"x": [{"b": {}}, {"b": {"c": 1, "d": 2, "c": 3}}]}', "x[1].b.c"),
        ('{"x": {"y": 1, "y": {"z": 1, "z": 2}}}', "x.y"),
        ('{"\\u0061": 1, "a": 2}', "a"),
        ('{"a\\nb": 1, "a\\nb": 2}', "'a\\nb'"),
    ],
)
def test_a_field_given_twice_is_named_wherever_it_is(tmp_path, content, field):
    problem = bad(content.encode(), tmp_path)
    assert problem.field == field
    assert "twice" in str(problem)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e400"])
def test_a_number_that_parsers_disagree_on_is_named(tmp_path, number):
    problem = bad(f'{{"a": [1.5, {number}]}}'.encode(), tmp_path)
    assert problem.field == "a[1]"
    assert "no JSON" in str(problem)


def test_numbers_that_a_float_holds_are_left_alone(tmp_path):
    rows = list(iter_json_rows(write(tmp_path / "a.jsonl", b'{"a": 1e308, "b": 12345678901234567890, "c": 1e-999}')))
    assert rows == [(1, {"a": 1e308, "b": 12345678901234567890, "c": 0.0})]


def test_the_name_of_a_field_is_quoted_and_cut_where_it_is_not_plain():
    assert name_of("weight") == "weight"
    assert len(name_of("x" * 10**6)) < 100
    assert name_of("\x1b[2J") == r"'\x1b[2J'"


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_a_list_is_read_alike_whatever_part_of_it_is_in_memory(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    rows = [{"a": 'é\u2028 \\ " 😀'}, 12, 1.5, True, None, "x", [[]], {"b": {}}, -7]
    file = write(tmp_path / "a.json", b"\n" + json.dumps(rows, ensure_ascii=False, indent=1).encode() + b"\n")
    found = list(iter_json_rows(file))
    assert [row for _, row in found] == rows
    assert [line for line, _ in found] == [3, 6, 7, 8, 9, 10, 11, 14, 17]


@pytest.mark.parametrize("chunk", [1, 5, 2**17])
def test_a_fault_in_a_list_is_located_whatever_part_of_it_is_in_memory(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    file = write(tmp_path / "a.json", '[{"a": "é"},\n {"a": "'.encode() + b"\xe9" + b'"}]')
    with pytest.raises(DataError, match=r"line 2: not UTF-8 \(byte 0xE9 at offset 22\)"):
        list(iter_json_rows(file))
    with pytest.raises(DataError, match="line 3: broken JSON"):
        list(iter_json_rows(write(tmp_path / "a.json", b'[{"a": 1},\n{"a": 2},\n{"a": tru}]')))
    with pytest.raises(DataError, match="line 2: broken JSON"):
        list(iter_json_rows(write(tmp_path / "a.json", b'[{"a": 1},\n{"a": "x')))
    rows = list(iter_json_rows(write(tmp_path / "a.json", b'[{"a": 1},\n{"a": 1, "a": 2},\n{"a": 3}]')))
    assert [line for line, _ in rows] == [1, 2, 3]
    assert isinstance(rows[1][1], BadRow)
    assert rows[2][1] == {"a": 3}


def test_a_long_list_is_never_in_memory_as_a_whole(tmp_path):
    file = write(tmp_path / "a.json", b"[" + b",".join([b'{"a": "' + b"y" * 10_000 + b'"}'] * 1000) + b"]")
    tracemalloc.start()
    try:
        assert sum(1 for _ in iter_json_rows(file)) == 1000
        assert tracemalloc.get_traced_memory()[1] < 2_000_000  # of 10 MB
    finally:
        tracemalloc.stop()
