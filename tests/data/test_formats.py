import json

import pytest

from antibody_llm.data.formats import fingerprint, load_prompts, load_records, load_refusals
from antibody_llm.data.records import Message, Template
from antibody_llm.errors import DataError
from tests.gsm8k import gsm8k_rows, write_chat, write_jsonl, write_prompt_completion


def chat(*turns, **extra):
    return {"messages": [{"role": role, "content": content} for role, content in turns], **extra}


GOOD = chat(("user", "Hi?"), ("assistant", "Hello."))


def refused(path) -> str:
    with pytest.raises(DataError) as caught:
        load_records(path)
    message = str(caught.value)
    assert str(path) in message
    return message


def test_chat_rows_keep_roles_weights_and_lines(tmp_path):
    row = chat(
        ("developer", "Be brief."), ("user", "Hi?"), ("assistant", "Yo."), ("user", "More?"), ("assistant", "No.")
    )
    row["messages"][2]["weight"] = 0
    row["messages"][4]["weight"] = 1
    path = tmp_path / "user.jsonl"
    path.write_text("\n" + json.dumps(GOOD) + "\r\n\n" + json.dumps(row) + "\n")
    first, second = load_records(path)
    assert (first.row_id, first.line, second.row_id, second.line) == (0, 2, 1, 4)
    assert second.messages[0] == Message("system", "Be brief.")
    assert [m.trained for m in second.messages if m.role == "assistant"] == [False, True]
    assert second.template is Template.CHAT
    assert second.where == f"{path}, line 4"


def test_prompt_and_completion_as_strings_are_text(tmp_path):
    (record,) = load_records(write_jsonl(tmp_path / "a.jsonl", [{"prompt": "Q: 1+1\nA:", "completion": " 2"}]))
    assert record.template is Template.TEXT
    assert record.messages == (Message("user", "Q: 1+1\nA:"), Message("assistant", " 2"))


def test_prompt_and_completion_as_messages_are_a_chat_whose_prompt_is_not_trained(tmp_path):
    row = {"prompt": chat(("user", "a"), ("assistant", "b"), ("user", "c"))["messages"]}
    row["completion"] = [{"role": "assistant", "content": "d"}]
    (record,) = load_records(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert record.template is Template.CHAT
    assert [(m.content, m.trained) for m in record.messages if m.role == "assistant"] == [("b", False), ("d", True)]


@pytest.mark.parametrize("indent", [None, 2])
def test_alpaca_lists_render_the_published_prompt_and_keep_each_row_s_line(tmp_path, indent):
    path = tmp_path / "alpaca.json"
    rows = [
        {"instruction": "Add.", "input": "1 1", "output": "2"},
        {"instruction": "Say hi.", "input": "", "output": "Hi"},
    ]
    path.write_text(json.dumps(rows, indent=indent))
    first, second = load_records(path)
    assert first.messages[0].content.endswith("### Instruction:\nAdd.\n\n### Input:\n1 1\n\n### Response:")
    assert second.messages[0].content == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSay hi.\n\n### Response:"
    )
    assert second.messages[1] == Message("assistant", "Hi")
    assert second.template is Template.TEXT
    assert (first.line, second.line) == ((1, 1) if indent is None else (2, 7))


def test_braces_in_an_alpaca_instruction_are_left_alone(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"instruction": "What is {input} in f'{x}'?", "output": "{}"}])
    assert "What is {input} in f'{x}'?" in load_records(path)[0].messages[0].content


def test_text_parts_of_a_message_are_joined(tmp_path):
    row = chat(("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), ("assistant", "c"))
    assert load_records(write_jsonl(tmp_path / "a.jsonl", [row]))[0].messages[0].content == "ab"


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(chat(("user", "a\u2028b"), ("assistant", "c")), ensure_ascii=False), encoding="utf-8")
    assert load_records(path)[0].messages[0].content == "a\u2028b"


def test_the_gsm8k_sample_reads_the_same_in_both_forms(tmp_path):
    chats = load_records(write_chat(tmp_path / "chat.jsonl"))
    texts = load_records(write_prompt_completion(tmp_path / "text.jsonl"))
    assert [r.messages[1].content for r in chats] == [row["answer"] for row in gsm8k_rows()]
    assert [r.messages[1].content.strip() for r in texts] == [r.messages[1].content for r in chats]
    assert len(chats) == 50


def test_a_missing_file_a_directory_and_an_empty_file_are_named(tmp_path):
    assert "no such file" in refused(tmp_path / "absent.jsonl")
    (tmp_path / "rows.jsonl").write_text(json.dumps(GOOD))
    assert "rows.jsonl" in refused(tmp_path)
    (tmp_path / "empty.jsonl").write_text(" \n\n")
    assert "empty" in refused(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match="name of the data is empty"):
        load_records("")
    (tmp_path / "none.json").write_text("[ ]")
    assert "empty" in refused(tmp_path / "none.json")


def test_a_byte_that_is_not_utf8_is_located(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"prompt": "a",\n "completion": "caf\xe9"}')
    assert "line 2: not UTF-8 (byte 0xE9 at offset 35)" in refused(path)


def test_a_byte_order_mark_is_refused_with_a_command_that_removes_it(tmp_path):
    path = tmp_path / "bom.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert "sed -i" in refused(path)


def test_broken_json_in_line_17_names_line_17(tmp_path):
    path = tmp_path / "user.jsonl"
    lines = [json.dumps(GOOD)] * 20
    lines[16] = lines[16][:-4]
    path.write_text("\n".join(lines))
    assert "line 17: broken JSON" in refused(path)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('[\n{"prompt": "a", "completion": "b"},\n{"prompt": }\n]', 3),
        ('[\n{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": "b"}]', 3),
        ('[\n{"prompt": "a", "completion": "b"},\n]', 3),
        ('[\n{"prompt": "a", "completion": "b"}]\n{"prompt": "a"}', 3),
        ('[\n{"prompt": "a", "completion": "b"}', 2),
        ("[" * 100_000, 1),
        ('{"prompt": ' + "[" * 100_000, 1),
        ('{"prompt": ' + "1" * 5000 + "}", 1),
    ],
)
def test_a_broken_file_names_the_line_where_it_breaks(tmp_path, content, line):
    path = tmp_path / "rows.json"
    path.write_text(content)
    assert f"line {line}: " in refused(path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (chat(("tool", "x"), ("assistant", "y")), "messages[0]: a tool's answer before any assistant message"),
        (chat(("robot", "x"), ("assistant", "y")), "messages[0].role: unknown role 'robot'"),
        (chat(("user", "x")), "no assistant message"),
        (chat(("user", "x"), ("assistant", "y"), ("user", "z")), "messages[2].role: the last message is from 'user'"),
        (chat(("user", "x"), ("assistant", " \n")), "messages[1].content: the completion is empty"),
        (chat(("assistant", "y")), "answers nothing"),
        ({"messages": []}, "messages: the list of messages is empty"),
        ({"messages": "hello"}, "a list of messages is needed, this is text"),
        ({"messages": [None]}, "messages[0]"),
        (chat(("user", 3), ("assistant", "y")), "messages[0].content: text is needed, this is a number"),
        (chat(("user", [{"type": "image_url"}]), ("assistant", "y")), "messages[0].content[0]"),
        (chat(("user", "\ud800"), ("assistant", "y")), "half a surrogate pair"),
        (chat(("user", "x"), ("assistant", "y"), tools=[{"type": "function"}]), "tools"),
        ({"prompt": "x", "completion": ""}, "completion: the completion is empty"),
        ({"prompt": "x"}, "no completion"),
        ({"prompt": "", "completion": "y"}, "the prompt is empty"),
        ({"instruction": "x", "output": ""}, "output: the completion is empty"),
        ({"question": "x", "answer": "y"}, "fields seen: answer, question"),
        (["x"], "a row is a JSON object, this is a list"),
    ],
)
def test_a_row_that_cannot_be_trained_names_line_and_field(tmp_path, row, said):
    good = {
        "messages": GOOD,
        "prompt": {"prompt": "a", "completion": "b"},
        "instruction": {"instruction": "a", "output": "b"},
    }
    form = next((field for field in good if isinstance(row, dict) and field in row), "messages")
    message = refused(write_jsonl(tmp_path / "user.jsonl", [good[form], row]))
    assert "line 2" in message
    assert said in message


@pytest.mark.parametrize("weight", [0.5, True, "1", 2, -1])
def test_a_weight_is_0_or_1(tmp_path, weight):
    row = chat(("user", "x"), ("assistant", "y"))
    row["messages"][1]["weight"] = weight
    assert "messages[1].weight" in refused(write_jsonl(tmp_path / "a.jsonl", [row]))


def test_a_row_whose_every_weight_is_0_is_refused(tmp_path):
    row = chat(("user", "x"), ("assistant", "y"))
    row["messages"][1]["weight"] = 0
    assert "weight 0" in refused(write_jsonl(tmp_path / "a.jsonl", [row]))


def test_mixed_formats_name_both_lines(tmp_path):
    message = refused(write_jsonl(tmp_path / "a.jsonl", [GOOD, GOOD, {"prompt": "a", "completion": "b"}]))
    assert "line 3" in message
    assert "line 1 is a chat row" in message


def test_more_rows_of_the_same_kind_are_counted(tmp_path):
    bad, other = chat(("user", "x")), chat(("narrator", "x"))
    message = refused(write_jsonl(tmp_path / "a.jsonl", [GOOD, bad, bad, other, GOOD, bad]))
    assert "line 2" in message
    assert "(2 more like it: line 3, 6)" in message
    assert "(1 more row is bad in another way)" in message


def test_a_name_that_is_no_file_is_looked_for_on_the_hub_and_the_error_says_so():
    with pytest.raises(DataError, match=r"nobody/nothing-here: no such file, and the data set cannot be loaded"):
        load_records("nobody/nothing-here")


def test_a_saved_data_set_reads_like_a_file(tmp_path):
    from datasets import Dataset, DatasetDict

    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(str(tmp_path / "set"))
    records = load_records(tmp_path / "set")
    assert [(r.row_id, r.line, r.messages[1].content) for r in records] == [(0, 1, "b"), (1, 2, "d")]
    with pytest.raises(DataError, match=r"no split 'test'\. Splits: train"):
        load_records(tmp_path / "set", split="test")


def test_a_folder_of_parquet_files_reads_like_a_file(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set" / "data").mkdir(parents=True)
    rows = datasets.Dataset.from_list([{"instruction": "a", "input": None, "output": "b"}])
    rows.to_parquet(str(tmp_path / "set" / "data" / "train-00000-of-00001.parquet"))
    (record,) = load_records(tmp_path / "set")
    assert record.messages[1].content == "b"
    (tmp_path / "set" / "data" / "train-00000-of-00001.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="set: the data set cannot be loaded"):
        load_records(tmp_path / "set")


def test_a_folder_with_other_data_beside_its_parquet_is_refused_as_one_kind_would_be_lost(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([{"prompt": "a", "completion": "b"}]), tmp_path / "a.parquet")
    (tmp_path / "README.md").write_text("Rows.")
    assert len(load_records(tmp_path)) == 1
    for index in range(5):
        (tmp_path / f"{index}.csv").write_text("prompt,completion\nc,d\n")
    assert r"several kinds (5 .csv, 1 .parquet)" in refused(tmp_path)


def test_rows_of_an_upload_that_is_a_data_set_are_not_left_in_the_cache(tmp_path, monkeypatch):
    import datasets

    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    folder = tmp_path / "set"
    folder.mkdir()
    rows = datasets.Dataset.from_list([{"prompt": "a secret", "completion": "b"}])
    rows.to_parquet(str(folder / "train.parquet"))
    assert load_records(folder)[0].messages[0].content == "a secret"
    assert not [file for file in cache.glob("**/*") if file.is_file() and b"secret" in file.read_bytes()]


@pytest.mark.parametrize("given", [0, False, 3, ["x"], {"a": 1}])
def test_an_alpaca_input_that_is_no_text_is_refused_and_not_taken_for_none(tmp_path, given):
    row = {"instruction": "a", "input": given, "output": "b"}
    assert "line 1, input: text is needed" in refused(write_jsonl(tmp_path / "a.jsonl", [row]))


def test_a_data_set_column_of_messages_without_weights_trains_them_all(tmp_path):
    from datasets import Dataset

    row = chat(("user", "x"), ("assistant", "y"), ("user", "z"), ("assistant", "w"))
    row["messages"][1]["weight"] = 0
    Dataset.from_list([row]).save_to_disk(str(tmp_path / "set"))
    (record,) = load_records(tmp_path / "set")
    assert [m.trained for m in record.messages] == [True, False, True, True]


def test_prompts_need_no_completion_and_keep_one_as_reference(tmp_path):
    rows = [chat(("user", "x")), GOOD]
    bare, answered = load_prompts(write_jsonl(tmp_path / "a.jsonl", rows))
    assert bare.messages[-1].role == "user"
    assert answered.messages[-1] == Message("assistant", "Hello.")
    (text,) = load_prompts(write_jsonl(tmp_path / "b.jsonl", [{"prompt": "x"}]))
    assert text.messages == (Message("user", "x"),)
    with pytest.raises(DataError, match="answers nothing"):
        load_prompts(write_jsonl(tmp_path / "d.jsonl", [chat(("assistant", "x"))]))
    (alpaca,) = load_prompts(write_jsonl(tmp_path / "c.jsonl", [{"instruction": "x"}]))
    assert len(alpaca.messages) == 1


def test_refusals_come_from_lines_or_rows(tmp_path):
    (tmp_path / "r.txt").write_text("I cannot.\n\n  No. \n")
    assert load_refusals(tmp_path / "r.txt") == ["I cannot.", "No."]
    path = write_jsonl(tmp_path / "r.jsonl", [{"refusal": "No."}, {"prompt": "x", "completion": " Never."}])
    assert load_refusals(path) == ["No.", "Never."]
    with pytest.raises(DataError, match="line 2"):
        load_refusals(write_jsonl(tmp_path / "s.jsonl", [{"refusal": "No."}, {"refusal": ""}]))
    with pytest.raises(DataError, match="line 1, refusal: half a surrogate pair"):
        load_refusals(write_jsonl(tmp_path / "s.jsonl", [{"refusal": "No \ud800."}]))


def test_the_fingerprint_is_of_content_and_order_not_of_the_file(tmp_path):
    rows = [GOOD, chat(("user", "x"), ("assistant", "y"))]
    one, moved, turned = (
        load_records(write_jsonl(tmp_path / name, content))
        for name, content in (("a.jsonl", rows), ("b.jsonl", rows), ("c.jsonl", rows[::-1]))
    )
    assert fingerprint(one) == fingerprint(moved)
    assert fingerprint(one) != fingerprint(turned)
