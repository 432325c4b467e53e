from types import MappingProxyType

import pytest

from antibody_llm.data.formats import fingerprint, load_records
from antibody_llm.data.raw import raw_rows
from antibody_llm.errors import DataError
from tests.gsm8k import write_jsonl

ROWS = [
    {"messages": [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": "é"}]}
    for i in range(3)
]


def test_a_file_its_bytes_and_its_rows_are_the_same_records_under_their_own_names(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    named = {"rows": raw_rows(iter(ROWS)), "bytes": raw_rows(path.read_bytes(), name="the upload"), "file": path}
    read = {how: load_records(given) for how, given in named.items()}
    assert len({fingerprint(records) for records in read.values()}) == 1
    assert {how: records[2].where for how, records in read.items()} == {
        "rows": "the rows, line 3",
        "bytes": "the upload, line 3",
        "file": f"{path}, line 3",
    }


@pytest.mark.parametrize(
    "given", [ROWS, iter(ROWS), b"[1, 2, 3]", b"1\n2\n3"], ids=["list", "iterator", "json", "lines"]
)
def test_rows_can_be_gone_through_again(given):
    rows = raw_rows(given)
    assert [line for line, _ in rows] in ([1, 2, 3], [1, 1, 1])
    assert list(rows) == list(rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "^the upload: the file is empty"),
        (b"PK\x03\x04", "^the upload: .*unzip 'the upload'"),
        (b'{"a": "\xe9"}', "^the upload, line 1: not UTF-8"),
        (b'{"prompt": "a"}', "^the upload, line 1, completion: no completion"),
        (b"prompt,completion\na,b", "^the upload, line 1: comma-separated"),
    ],
)
def test_what_is_wrong_with_bytes_is_reported_as_of_a_file(content, message):
    with pytest.raises(DataError, match=message):
        load_records(raw_rows(content, name="the upload"))


def test_python_rows_are_what_json_would_make_of_them():
    (row,) = raw_rows([MappingProxyType({"messages": ({1: None, False: 0.5},)})])
    assert row == (1, {"messages": [{"1": None, "false": 0.5}]})


LOOP: list = []
LOOP.append(LOOP)
DEEP: list = []
for _ in range(100_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"x": {"y": [1, {2}]}}, r"x\.y\[1\]: holds set, which JSON cannot"),
        ({"x": object(), "y": b""}, "x: holds object"),
        ({"x": LOOP}, r"x\[0\]: it holds itself"),
        ({"x": DEEP}, "nested too deeply"),
        ({"x": {(1, 2): "a"}}, "x: a key is tuple"),
        ({"x": float("nan")}, "x: NaN"),
        ({"x": 10**5000}, "x: holds int"),
        ({"x": {1: "a", "1": "b"}}, r"x\.1: the object gives '1' twice|gives"),
    ],
    ids=["set", "object", "loop", "deep", "key", "nan", "digits", "twice"],
)
def test_a_python_row_that_json_cannot_hold_is_refused_with_its_place(odd, message):
    with pytest.raises(DataError, match=f"^the rows, line 2.*{message}"):
        load_records([ROWS[0], odd, ROWS[1]])


def test_a_python_row_that_is_no_mapping_is_refused_as_a_line_of_a_file_is():
    for odd in ([ROWS[0]], "text", None):
        with pytest.raises(DataError, match="^the rows, line 1: "):
            load_records([odd])
