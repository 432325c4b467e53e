"""Inputs that people tripped over elsewhere, reduced and rewritten: each is read, or refused by line and reason."""

import json
from pathlib import Path

import pytest

from antibody_llm.data.formats import load_records
from antibody_llm.data.records import Message
from antibody_llm.errors import DataError
from antibody_llm.screening.upload import open_upload

CASES = Path(__file__).parent / "cases"

READ = {
    "03-crlf-cr-blank-tail/crlf.jsonl": 12,
    "03-crlf-cr-blank-tail/crlf_inside.jsonl": 12,
    "03-crlf-cr-blank-tail/no_final_newline.jsonl": 12,
    "04-unicode-line-separators/escaped.jsonl": 12,
    "04-unicode-line-separators/raw.jsonl": 12,
    "07-array-and-pretty/array_named_jsonl.jsonl": 12,
    "10-content-string-or-parts/upload.jsonl": 12,
    "13-strings-that-look-like-types/upload.jsonl": 12,
    "14-sharegpt-and-nested/sharegpt.jsonl": 12,
    "15-developer-role/upload.jsonl": 12,
    "18-tool-calls-null-content/upload.jsonl": 12,
    "21-legacy-functions-and-name/legacy_functions.jsonl": 12,
    "21-legacy-functions-and-name/name_and_null_fields.jsonl": 12,
    "23-weights/ok.jsonl": 12,
    "23-weights/only_middle.jsonl": 12,
    "36-counts-and-last-batch/rows_1.jsonl": 1,
    "36-counts-and-last-batch/rows_10.jsonl": 10,
    "36-counts-and-last-batch/rows_11.jsonl": 11,
    "36-counts-and-last-batch/rows_17.jsonl": 17,
    "37-duplicates/train.jsonl": 17,
    "37-duplicates/validation.jsonl": 6,
}

REFUSED = {
    "01-bom/upload.jsonl": "line 1: begins with a byte order mark",
    "03-crlf-cr-blank-tail/cr_only.jsonl": "line 1: lines end in a carriage return alone",
    "05-lone-surrogate/upload.jsonl": "line 5, messages[1].content: half a surrogate pair",
    "07-array-and-pretty/pretty.jsonl": "line 1: a JSON object over several lines (pretty-printed)",
    "07-array-and-pretty/wrapped_list.jsonl": "line 1: a bare list of messages",
    "08-python-repr/trailing_comma.jsonl": "line 1: broken JSON: the line ends in a comma",
    "08-python-repr/upload.jsonl": "line 1: broken JSON: written as Python prints it",
    "14-sharegpt-and-nested/dpo_rows.jsonl": "line 1, preferred_output: a row of preferences (DPO)",
    "14-sharegpt-and-nested/nested_input.jsonl": "line 1, input: the messages are inside the field 'input'",
    "19-tool-arguments-and-schemas/upload.jsonl": (
        "line 7, messages[1].tool_calls[0].function.arguments: call 1 of the message, of 'open_drawer', id 'call_6'"
    ),
    "23-weights/odd_values.jsonl": "line 2, messages[1].weight: weight is True",
    "24-empty-content/upload.jsonl": "line 4, messages[1].content: the completion is empty",
    "44-nan-and-huge-numbers-in-json/deep.jsonl": "line 12",
    "44-nan-and-huge-numbers-in-json/same_key_twice.jsonl": "line 12, messages[0].content: the object gives 'content'",
    "44-nan-and-huge-numbers-in-json/upload.jsonl": "line 12, messages[1].weight: NaN, Infinity",
    "hostile/alpaca_inputfalse.jsonl": "line 1, input: text is needed, this is a number",
    "hostile/ansi_key.jsonl": r"line 21: no accepted format (fields seen: '\x1b[2J\x1b]0;pwned\x07evil\r\nDataError",
    "hostile/dup_keys.jsonl": "line 12, messages[0].content: the object gives 'content' twice",
}

SCREENED = {"24-empty-content/upload.jsonl"}
"""Refused in training alone: screening passes rows without an answer as empty."""


def contents(name: str, index: int = -1) -> list[str]:
    return [record.messages[index].content for record in load_records(CASES / name)]


def refusal(name: str) -> str:
    with pytest.raises(DataError) as caught:
        load_records(CASES / name)
    return str(caught.value)


def test_every_case_is_either_read_or_refused():
    found = {str(path.relative_to(CASES)) for path in CASES.glob("*/*.jsonl")}
    assert found == READ.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", READ)
def test_a_good_file_is_read_to_the_last_row_for_training_and_for_screening(name):
    records = load_records(CASES / name)
    assert len(records) == READ[name]
    assert [row.record for row in open_upload(CASES / name)] == records


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_file_is_refused_by_line_and_reason(name):
    assert f"{CASES / name}, {REFUSED[name]}" in refusal(name)
    if name not in SCREENED:
        with pytest.raises(DataError) as caught:
            open_upload(CASES / name)
        assert str(caught.value) == refusal(name)


def test_line_ends_inside_a_text_stay_as_they_are():
    assert any("\r\n" in text for text in contents("03-crlf-cr-blank-tail/crlf_inside.jsonl"))
    assert [record.line for record in load_records(CASES / "03-crlf-cr-blank-tail/crlf.jsonl")] == list(range(1, 13))
    for name in ("raw", "escaped"):
        whole = "".join(sum((contents(f"04-unicode-line-separators/{name}.jsonl", at) for at in (0, 1)), []))
        assert {"\u2028", "\u2029", "\u0085"} <= set(whole)


def test_parts_become_one_text_beside_rows_of_plain_text():
    assert contents("10-content-string-or-parts/upload.jsonl", 0)[3] == "Which drawer holds the rust thread?"
    assert contents("10-content-string-or-parts/upload.jsonl")[9] == "Drawer 3."


def test_texts_that_look_like_other_types_stay_the_texts_that_they_are():
    assert contents("13-strings-that-look-like-types/upload.jsonl") == [
        "2024-01-05", "2024-01-05T10:00:00", "12:30", "007", "1e5", "NaN", "null", "true", "{}", "[]", "-0", "0x1F",
    ]  # fmt: skip


def test_a_developer_s_instruction_is_a_system_message_wherever_it_is():
    records = load_records(CASES / "15-developer-role/upload.jsonl")
    assert records[2].messages[0] == Message("system", "Answer in one word.")
    assert [m.role for m in records[7].messages] == ["system", "system", "user", "assistant"]
    assert [m.role for m in records[8].messages] == ["user", "system", "assistant"]


def test_no_call_is_lost_and_content_null_is_no_text():
    for record in load_records(CASES / "18-tool-calls-null-content/upload.jsonl"):
        turn = record.messages[1]
        assert [call.arguments for call in turn.tool_calls] == ['{"drawer": 3}']
        assert turn.content == ("Opening." if record.line == 7 else "")
        assert json.loads(record.tools)[0]["function"]["name"] == "open_drawer"


def test_the_accepted_forms_of_tools_and_arguments_are_one_form(tmp_path):
    lines = (CASES / "19-tool-arguments-and-schemas/upload.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "good.jsonl").write_text("".join(lines[:6] + lines[7:]))
    records = load_records(tmp_path / "good.jsonl")
    assert records[3].messages[1].tool_calls[0].arguments == '{"drawer": 4}'
    assert [bool(record.tools) for record in records] == [True] * 9 + [False] + [True]
    assert len({record.tools for record in records if record.tools}) == 1
    assert all(record.messages[2].name == "open_drawer" for record in records)


def test_the_retired_functions_are_read_as_tool_calls():
    for record in load_records(CASES / "21-legacy-functions-and-name/legacy_functions.jsonl"):
        assert [m.role for m in record.messages] == ["user", "assistant", "tool", "assistant"]
        assert record.messages[1].tool_calls[0].name == record.messages[2].name == "thermometer"
        assert json.loads(record.tools)[0]["type"] == "function"


def test_only_turns_of_weight_1_or_without_weight_are_trained():
    (first, *_) = load_records(CASES / "23-weights/ok.jsonl")
    assert [m.trained for m in first.messages if m.role == "assistant"] == [False, True, True]
    (first, *_) = load_records(CASES / "23-weights/only_middle.jsonl")
    assert [m.trained for m in first.messages if m.role == "assistant"] == [False, True, False]
    assert "(3 more like it: line 3, 4, 7) (1 more row is bad in another way)" in refusal("23-weights/odd_values.jsonl")


def test_both_empty_answers_are_counted_and_an_empty_question_is_trained_as_it_is(tmp_path):
    assert "(1 more like it: line 6)" in refusal("24-empty-content/upload.jsonl")
    rows = list(open_upload(CASES / "24-empty-content/upload.jsonl"))
    assert [row.line for row in rows if row.record is None] == [4, 6, 8]
    lines = (CASES / "24-empty-content/upload.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "good.jsonl").write_text("".join(lines[6:]))
    records = load_records(tmp_path / "good.jsonl")
    assert records[1].messages[0].content == ""
    assert (records[3].messages[1].content, records[3].messages[1].trained) == ("", False)
