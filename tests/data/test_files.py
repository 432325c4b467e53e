import tracemalloc

import pytest

from antibody.data.files import BadRow, iter_json_rows, read_json_rows
from antibody.errors import DataError


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
    ("content", "told"),
    [(b"", "is empty"), (b" \n\n", "is empty"), (b"\xef\xbb\xbf{}", "byte order mark"), (b"[]", "list is empty")],
)
def test_a_file_that_cannot_be_read_at_all_is_refused(tmp_path, content, told):
    with pytest.raises(DataError, match=told):
        list(iter_json_rows(write(tmp_path / "a.json", content)))


def test_a_json_list_gives_the_rows_that_its_lines_would(tmp_path):
    file = write(tmp_path / "a.json", b'\n[{"a": 1},\n {"a": 2}]')
    assert list(iter_json_rows(file)) == [(2, {"a": 1}), (3, {"a": 2})] == read_json_rows(file)


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
