import json

import pytest

from antibody_llm.data.convert import canonical
from antibody_llm.data.formats import RowReader, load_records
from tests.data.test_cases import CASES, READ
from tests.gsm8k import write_jsonl

USER, END = {"role": "user", "content": "Open 3."}, {"role": "assistant", "content": "It is open."}
FUNCTION = {"name": "open", "parameters": {"type": "object", "properties": {}}}


def converted(row):
    reader = RowReader("rows", trainable=True)
    record = reader.read(0, 1, row)
    return canonical(record, row, form=reader.first[1])


def calling(**more):
    call = {"id": "c1", "type": "function", "function": {"name": "open", "arguments": '{"drawer": 3}'}}
    return {"role": "assistant", "content": None, "tool_calls": [call | more]}


def test_a_canonical_row_stays_as_it_is():
    row = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            USER,
            calling(),
            {"role": "tool", "content": "done", "tool_call_id": "c1"},
            END | {"weight": 0},
            USER,
            END | {"reasoning_content": "Which?"},
        ],
        "tools": [{"type": "function", "function": FUNCTION}],
        "parallel_tool_calls": False,
    }
    made = converted(row)
    assert made.row == row
    assert (made.changed, made.dropped) == ((), ())


@pytest.mark.parametrize("name", [name for name in READ if "duplicates" not in name and "counts" not in name])
def test_the_converted_row_reads_as_the_original_does_but_for_ids(tmp_path, name):
    rows = [json.loads(line) for line in (CASES / name).read_text("utf-8").split("\n") if line.startswith("{")]
    if not rows:
        rows = json.loads((CASES / name).read_text("utf-8"))
    (tmp_path / "rows.jsonl").write_text("".join(converted(row).line() for row in rows), encoding="utf-8")
    before, after = load_records(CASES / name), load_records(tmp_path / "rows.jsonl")
    for old, new in zip(before, after, strict=True):
        assert [(m.role, m.content, m.trained, m.reasoning, m.name) for m in new.messages] == [
            (m.role, m.content, m.trained, m.reasoning, m.name) for m in old.messages
        ]
        assert [[(c.name, c.arguments) for c in m.tool_calls] for m in new.messages] == [
            [(c.name, c.arguments) for c in m.tool_calls] for m in old.messages
        ]
        assert new.tools == old.tools


def test_alpaca_becomes_a_question_without_the_prompt_text_around_it():
    made = converted({"instruction": "Add.", "input": "1 1", "output": "2"})
    assert made.row == {"messages": [{"role": "user", "content": "Add.\n\n1 1"}, {"role": "assistant", "content": "2"}]}
    assert converted({"instruction": "Add.", "input": "", "output": "2"}).row["messages"][0]["content"] == "Add."


def test_what_is_left_out_and_what_has_another_form_is_named():
    row = {
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
            USER | {"name": "ada"},
            {"role": "assistant", "content": None, "function_call": {"name": "open", "arguments": '{"drawer": 3}'}},
            {"role": "function", "name": "open", "content": "done"},
            END | {"thinking": "Which?", "refusal": None, "annotations": [], "logprobs": {"x": 1}},
        ],
        "functions": [FUNCTION],
        "id": 7,
        "note": None,
        "\x1b[2J": "x",
    }
    made = converted(row)
    assert made.dropped == ("id", r"'\x1b[2J'", "name of messages", "logprobs of messages")
    assert made.changed == (
        "functions became tools",
        "role developer became system",
        "parts of a content became one text",
        "function_call became tool_calls",
        "role function became tool",
        "reasoning became reasoning_content",
        "calls without an id were given one",
    )
    messages = made.row["messages"]
    assert messages[0] == {"role": "system", "content": "Be brief."}
    assert messages[2]["tool_calls"][0]["id"] == messages[3]["tool_call_id"] == "call_0"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"drawer": 3}, "arguments became JSON text"),
        ('{"drawer":3}', "the JSON text of arguments was written again"),
        ('{"drawer": 3}', None),
    ],
)
def test_arguments_are_one_json_text(arguments, said):
    made = converted({"messages": [USER, calling(function={"name": "open", "arguments": arguments})]})
    assert made.row["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"drawer": 3}'
    assert made.changed == (() if said is None else (said,))


def test_a_call_without_an_id_takes_that_of_its_answer_or_a_new_one():
    turn = calling()
    turn["tool_calls"] = [{"type": "function", "function": {"name": name, "arguments": "{}"}} for name in "abc"]
    turn["tool_calls"][1]["id"] = "call_0"
    answers = [{"role": "tool", "content": "x", "tool_call_id": "mine"}, {"role": "tool", "content": "y"}]
    made = converted({"messages": [USER, turn, *answers, END]}).row["messages"]
    assert [call["id"] for call in made[1]["tool_calls"]] == ["mine", "call_0", "call_1"]
    assert [message["tool_call_id"] for message in made[2:4]] == ["mine", "call_1"]


def test_sharegpt_calls_and_systems_become_messages():
    row = {
        "conversations": [
            {"from": "human", "value": "Open 3."},
            {"from": "function_call", "value": '{"name": "open", "arguments": {"drawer": 3}}'},
            {"from": "observation", "value": "done"},
            {"from": "gpt", "value": "It is open."},
        ],
        "system": "Be brief.",
        "id": "x1",
    }
    made = converted(row)
    assert [message["role"] for message in made.row["messages"]] == ["system", "user", "assistant", "tool", "assistant"]
    assert made.dropped == ("id",)


def test_a_line_holds_nothing_that_another_program_would_take_for_its_end(tmp_path):
    made = converted({"prompt": "a\u2028b\u0085c\nd é", "completion": "x\u2029"})
    assert made.line().splitlines(keepends=True) == [made.line()]
    assert "é" in made.line()
    (tmp_path / "rows.jsonl").write_text(made.line(), encoding="utf-8")
    assert [m.content for m in load_records(tmp_path / "rows.jsonl")[0].messages] == ["a\u2028b\u0085c\nd é", "x\u2029"]


def test_context_of_a_prompt_is_untrained_in_the_canonical_row(tmp_path):
    row = {"prompt": [USER, END, USER], "completion": [END]}
    made = converted(row)
    assert [message.get("weight") for message in made.row["messages"]] == [None, 0, None, None]
    (record,) = load_records(write_jsonl(tmp_path / "rows.jsonl", [made.row]))
    assert record.messages == load_records(write_jsonl(tmp_path / "old.jsonl", [row]))[0].messages
