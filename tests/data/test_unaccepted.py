import json
import shutil
import subprocess

import pytest

from antibody_llm.data.formats import load_prompts, load_records
from antibody_llm.errors import DataError
from antibody_llm.screening.upload import open_upload
from tests.gsm8k import write_jsonl

USER, GOOD, WORSE = (
    {"role": "user", "content": "Which drawer?"},
    {"role": "assistant", "content": "The second."},
    {"role": "assistant", "content": "Any."},
)

PREFERENCES = {
    "hosted": {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [WORSE]},
    "specification": {
        "input": {"messages": [USER], "tools": []},
        "preferred_completion": [GOOD],
        "non_preferred_completion": [WORSE],
    },
    "texts": {"prompt": "Which drawer?", "chosen": "The second.", "rejected": "Any."},
    "messages": {"prompt": [USER], "chosen": [GOOD], "rejected": [WORSE]},
    "implicit": {"chosen": [USER, GOOD], "rejected": [USER, WORSE]},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Which drawer?"}],
        "chosen": {"from": "gpt", "value": "The second."},
        "rejected": {"from": "gpt", "value": "Any."},
    },
    "alpaca": {"instruction": "Which drawer?", "input": "", "chosen": "The second.", "rejected": "Any."},
}

OTHERS = {
    "reinforcement": ({"messages": [USER], "reference_answer": "The second."}, "a row of reinforcement"),
    "grader": ({"messages": [USER], "grader": "The second."}, "a row of reinforcement"),
    "prompt with reference": ({"prompt": "Which drawer?", "ground_truth": "The second."}, "a row of reinforcement"),
    "nested": ({"input": {"messages": [USER]}, "output": "The second."}, "inside the field 'input'"),
    "request": ({"custom_id": "1", "method": "POST", "body": {"messages": [USER, GOOD]}}, "inside the field 'body'"),
    "rows in a field": ({"data": [{"messages": [USER, GOOD]}]}, "the rows are in the field 'data'"),
    "question and answer": ({"question": "Which drawer?", "answer": "The second."}, "Name them prompt and completion"),
}


def refused(tmp_path, row) -> str:
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError) as caught:
        load_records(path)
    assert "line 1" in str(caught.value)
    return str(caught.value)


def converted(message: str, tmp_path):
    """What the command in the message makes of the file; None without jq."""
    if shutil.which("jq") is None:
        return None
    program = message.split("jq -c '")[1].split("' IN > OUT")[0]
    made = subprocess.run(["jq", "-c", program, tmp_path / "rows.jsonl"], check=True, capture_output=True).stdout
    (tmp_path / "converted.jsonl").write_bytes(made)
    (record,) = load_records(tmp_path / "converted.jsonl")
    return record


def assert_converts(message: str, tmp_path) -> None:
    if (record := converted(message, tmp_path)) is not None:
        assert "Which drawer?" in record.messages[0].content
        assert [message.content for message in record.messages[1:]] == ["The second."]


@pytest.mark.parametrize("name", PREFERENCES)
def test_rows_of_preferences_are_named_with_what_keeps_the_better_answer(tmp_path, name):
    message = refused(tmp_path, PREFERENCES[name])
    assert "a row of preferences (DPO)" in message
    assert_converts(message, tmp_path)


@pytest.mark.parametrize("name", OTHERS)
def test_another_known_format_is_named_with_what_converts_it(tmp_path, name):
    row, said = OTHERS[name]
    message = refused(tmp_path, row)
    assert said in message
    assert_converts(message, tmp_path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (USER, "a bare message, not a row"),
        ([USER, GOOD], "a bare list of messages"),
        ({"text": "Once upon a time."}, "rows of plain text"),
        ({"a": 1, "b": 2}, "fields seen: a, b"),
        ({f"field{i:03}": 1 for i in range(500)}, "field011, ...)"),
        ({}, "fields seen: none"),
        ("text", "this is text"),
        ({"\x1b[2Jx": 1}, r"fields seen: '\x1b[2Jx'"),
    ],
)
def test_a_row_of_no_accepted_format_says_what_it_is(tmp_path, row, said):
    if isinstance(row, list):
        path = tmp_path / "rows.json"
        path.write_text(json.dumps([row]))
        with pytest.raises(DataError) as caught:
            load_records(path)
        assert said in str(caught.value)
    else:
        assert said in refused(tmp_path, row)


def test_each_line_a_bare_list_of_messages_is_refused_by_that_rule(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(2 * (json.dumps([USER, GOOD]) + "\n"))
    with pytest.raises(DataError, match=r'line 2: a second JSON list: each line is a bare list.*"messages"'):
        load_records(path)


def test_prompts_of_reinforcement_and_of_preferences_can_be_asked(tmp_path):
    rows = [{"messages": [USER], "reference_answer": "The second."}]
    assert load_prompts(write_jsonl(tmp_path / "a.jsonl", rows))[0].messages[-1].role == "user"
    assert len(load_prompts(write_jsonl(tmp_path / "b.jsonl", [PREFERENCES["texts"]]))[0].messages) == 1


def test_screening_refuses_them_in_the_same_words(tmp_path):
    said = refused(tmp_path, PREFERENCES["hosted"])
    with pytest.raises(DataError) as caught:
        open_upload(tmp_path / "rows.jsonl")
    assert str(caught.value) == said


def test_a_complete_chat_keeps_its_other_fields_out_of_the_way(tmp_path):
    row = {"messages": [USER, GOOD], "chosen": [USER, GOOD], "reference_answer": "x", "data": [{}], "text": "y"}
    (record,) = load_records(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert record.messages[-1].content == "The second."


# -- ShareGPT, which is accepted ---------------------------------------------------------------------------------


def share(*turns, **more):
    return {"conversations": [{"from": speaker, "value": text} for speaker, text in turns], **more}


def test_sharegpt_is_read_as_a_chat_and_said_so_once(tmp_path, caplog):
    rows = [
        share(("system", "Be brief."), ("human", "Hi?"), ("gpt", "Hello.")),
        share(("user", "Hi?"), ("chatgpt", "Yo."), ("human", "More?"), ("assistant", "No.")),
        {"conversations": [USER, GOOD]},
        share(("human", "Hi?"), ("gpt", "Hello."), system="Be kind."),
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    for read in (load_records, open_upload):
        caplog.clear()
        with caplog.at_level("INFO", logger="antibody"):
            read(path)
        (said,) = [record.getMessage() for record in caplog.records]
        assert "ShareGPT" in said
    records = load_records(path)
    assert [m.role for m in records[0].messages] == ["system", "user", "assistant"]
    assert [m.role for m in records[1].messages] == ["user", "assistant"] * 2
    assert records[2].messages[1].content == "The second."
    assert (records[3].messages[0].role, records[3].messages[0].content) == ("system", "Be kind.")


def test_calls_and_observations_of_sharegpt_are_tool_calls_and_their_answers(tmp_path):
    row = share(
        ("human", "Open 3."),
        ("function_call", '{"name": "open", "arguments": {"drawer": 3}}'),
        ("observation", '{"open": true}'),
        ("gpt", "It is open."),
        tools='[{"name": "open", "parameters": {}}]',
    )
    (record,) = load_records(write_jsonl(tmp_path / "a.jsonl", [row]))
    (call,) = record.messages[1].tool_calls
    assert (call.name, call.arguments) == ("open", '{"drawer": 3}')
    assert (record.messages[2].role, record.messages[2].name) == ("tool", "open")
    assert json.loads(record.tools) == [{"type": "function", "function": {"name": "open", "parameters": {}}}]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (share(("human", "a"), ("bard", "b")), "conversations[1].from: unknown speaker 'bard'"),
        (share(("human", "a"), ("gpt", " ")), "conversations[1].value: the completion is empty"),
        (share(("human", "a"), ("gpt", " "), system="x"), "conversations[1].value: the completion is empty"),
        (share(("human", "a"), ("gpt", "b"), ("human", "c")), "conversations[2].from: the last message is from 'user'"),
        (share(("human", "a")), "conversations: no assistant message"),
        (share(("gpt", "b")), "answers nothing"),
        (share(("system", "a"), ("human", "b"), ("gpt", "c"), system="d"), "system: the row has a system text"),
        (share(("human", "a"), ("function_call", "open(3)")), "conversations[1].value: what function_call says"),
        (share(("human", "a"), ("function_call", "[]")), "conversations[1].value: a call"),
        (share(("human", "a"), ("observation", "b"), ("gpt", "c"), system="d"), "conversations[1]: a tool's answer"),
        ({"conversations": ["a"]}, "conversations[0]: a message is"),
        ({"conversations": []}, "conversations: the list of messages is empty"),
    ],
)
def test_what_is_wrong_with_a_row_of_sharegpt_is_named_in_its_own_fields(tmp_path, row, said):
    assert said in refused(tmp_path, row)


def test_chats_and_sharegpt_in_one_file_are_two_formats(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": [USER, GOOD]}, share(("human", "a"), ("gpt", "b"))])
    with pytest.raises(DataError, match="line 2: a ShareGPT row, but line 1 is a chat row"):
        load_records(path)
