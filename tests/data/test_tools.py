import json

import pytest

from antibody_llm.data.formats import fingerprint, load_prompts, load_records
from antibody_llm.data.records import Message, Template, ToolCall
from antibody_llm.errors import DataError
from tests.gsm8k import write_jsonl

OPEN = {"name": "open", "description": "Opens a drawer.", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": OPEN}]


def call(arguments='{"drawer": 3}', call_id="c1", name="open"):
    made = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return made | ({"id": call_id} if call_id else {})


def asks(*calls, **more):
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **more}


def answer(content="done", call_id="c1", **more):
    return {"role": "tool", "content": content} | ({"tool_call_id": call_id} if call_id else {}) | more


USER, END = {"role": "user", "content": "Open 3."}, {"role": "assistant", "content": "It is open."}


def row(*messages, tools=TOOLS, **more):
    return {"messages": [USER, *messages], "tools": tools, **more}


def read(tmp_path, *rows, load=load_records):
    return load(write_jsonl(tmp_path / "rows.jsonl", list(rows)))


def refused(tmp_path, bad) -> str:
    with pytest.raises(DataError) as caught:
        read(tmp_path, row(asks(call()), answer(), END), bad)
    assert "line 2" in str(caught.value)
    return str(caught.value)


def test_a_call_its_answer_and_the_tools_are_kept(tmp_path):
    (record,) = read(tmp_path, row(asks(call()), answer(), END, parallel_tool_calls=False))
    assert json.loads(record.tools) == TOOLS
    assert record.template is Template.CHAT
    assert record.messages == (
        Message("user", "Open 3."),
        Message("assistant", "", tool_calls=(ToolCall("open", '{"drawer": 3}', "c1"),)),
        Message("tool", "done", tool_call_id="c1", name="open"),
        Message("assistant", "It is open."),
    )


@pytest.mark.parametrize("arguments", ['{"drawer": 3}', '{"drawer":3}', {"drawer": 3}, ' {\n"drawer": 3}'])
@pytest.mark.parametrize("content", [None, "", "absent"])
def test_arguments_as_text_or_object_and_content_null_empty_or_absent_are_the_same_row(tmp_path, arguments, content):
    turn = asks(call(arguments), content=content)
    if content == "absent":
        del turn["content"]
    (record,) = read(tmp_path, row(turn, answer(), END))
    assert record == read(tmp_path, row(asks(call()), answer(), END))[0]


def test_letters_beyond_ascii_in_arguments_and_tools_stay_letters(tmp_path):
    tools = [{"type": "function", "function": OPEN | {"description": "Öffnet 😀"}}]
    (record,) = read(tmp_path, row(asks(call('{"was": "Tür\\u00e9"}')), answer(), END, tools=tools))
    assert record.messages[1].tool_calls[0].arguments == '{"was": "Türé"}'
    assert "Öffnet 😀" in record.tools


@pytest.mark.parametrize("arguments", ["", None, {}])
def test_a_function_without_parameters_is_called_with_an_empty_object(tmp_path, arguments):
    (record,) = read(tmp_path, row(asks(call(arguments)), answer(), END))
    assert record.messages[1].tool_calls[0].arguments == "{}"


def test_text_beside_a_call_and_several_calls_at_once_are_kept(tmp_path):
    turn = asks(call(call_id="a"), call('{"drawer": 4}', "b", name="shut"), content="At once.")
    (record,) = read(tmp_path, row(turn, answer(call_id="b"), answer(call_id="a"), END))
    assert record.messages[1].content == "At once."
    assert [c.call_id for c in record.messages[1].tool_calls] == ["a", "b"]
    assert [m.name for m in record.messages[2:4]] == ["shut", "open"]


@pytest.mark.parametrize("tools", [json.dumps(TOOLS), [OPEN], [{"type": "function", **OPEN}], [{"function": OPEN}]])
def test_tools_as_text_or_without_their_wrapper_are_the_same_tools(tmp_path, tools):
    (record,) = read(tmp_path, row(asks(call()), answer(), END, tools=tools))
    assert record.tools == json.dumps(TOOLS)


@pytest.mark.parametrize("tools", [[], None, "", "[]"])
def test_an_empty_list_of_tools_is_none(tmp_path, tools):
    assert read(tmp_path, row(END, tools=tools))[0].tools == ""


def test_a_call_without_an_id_is_accepted_and_answers_are_named_in_order(tmp_path):
    turn = asks(call(call_id=""), call(call_id="", name="shut"))
    (record,) = read(tmp_path, row(turn, answer(call_id=""), answer(call_id="whatever"), END))
    assert [m.name for m in record.messages[2:4]] == ["open", "shut"]


def test_the_older_functions_are_read_as_tools(tmp_path):
    older = {
        "messages": [
            USER,
            {"role": "assistant", "content": None, "function_call": {"name": "open", "arguments": '{"drawer": 3}'}},
            {"role": "function", "name": "open", "content": "done"},
            END,
        ],
        "functions": [OPEN],
    }
    (record,) = read(tmp_path, older)
    assert record.tools == json.dumps(TOOLS)
    assert record.messages == (
        Message("user", "Open 3."),
        Message("assistant", "", tool_calls=(ToolCall("open", '{"drawer": 3}'),)),
        Message("tool", "done", name="open"),
        Message("assistant", "It is open."),
    )


def test_a_trained_turn_that_only_calls_a_tool_is_not_empty(tmp_path):
    (record,) = read(tmp_path, row(asks(call(), weight=1)))
    assert record.messages[-1].trained
    (record,) = read(tmp_path, row(asks(call(), weight=0), answer(), END))
    assert not record.messages[1].trained


def test_tools_of_a_prompt_given_as_messages_are_kept_and_its_calls_are_not_trained(tmp_path):
    given = {"prompt": [USER, asks(call()), answer()], "completion": [END], "tools": TOOLS}
    (record,) = read(tmp_path, given)
    assert json.loads(record.tools) == TOOLS
    assert record.messages[1] == Message(
        "assistant", "", trained=False, tool_calls=(ToolCall("open", '{"drawer": 3}', "c1"),)
    )
    assert record.messages[2].name == "open"
    (prompt,) = read(tmp_path, {"prompt": [USER], "tools": TOOLS}, load=load_prompts)
    assert json.loads(prompt.tools) == TOOLS


def test_parts_of_text_are_joined_in_every_role(tmp_path):
    def parts(text):
        return [{"type": "text", "text": text[:2]}, {"type": "text", "text": text[2:]}]

    given = {
        "messages": [
            {"role": "system", "content": parts("brief")},
            {"role": "user", "content": parts("open")},
            asks(call(), content=parts("sure")),
            answer(parts("done")),
            {"role": "assistant", "content": parts("open now")},
        ]
    }
    (record,) = read(tmp_path, given)
    assert [m.content for m in record.messages] == ["brief", "open", "sure", "done", "open now"]
    split = {"prompt": given["messages"][:2], "completion": given["messages"][4:]}
    (record,) = read(tmp_path, split)
    assert [m.content for m in record.messages] == ["brief", "open", "open now"]


NULLS = {"refusal": None, "audio": None, "annotations": [], "function_call": None, "tool_calls": None, "name": None}


def test_what_the_chat_api_returns_beside_a_text_does_not_make_a_row_invalid(tmp_path):
    (record,) = read(tmp_path, {"messages": [USER | {"name": "ada"}, END | NULLS]})
    assert record.messages == (Message("user", "Open 3."), Message("assistant", "It is open."))


@pytest.mark.parametrize("field", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_beside_an_answer_is_kept_apart_from_it(tmp_path, field):
    (record,) = read(tmp_path, {"messages": [USER | {field: None}, END | {field: "Which drawer?"}]})
    assert record.messages[1] == Message("assistant", "It is open.", reasoning="Which drawer?")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (
            row(asks(call(), call("{drawer: 4}", "c2", "shut")), END),
            "messages[1].tool_calls[1].function.arguments: call 2 of the message, of 'shut', id 'c2': its arguments",
        ),
        (row(asks(call('{"a": 1, "a": 2}')), END), "arguments: call 1 of the message, of 'open', id 'c1'"),
        (row(asks(call("[1]")), END), "must be a JSON object, this is a list"),
        (row(asks(call('{"a": NaN}')), END), "NaN"),
        (row(asks({"type": "function", "id": "x"}), END), "messages[1].tool_calls[0].function"),
        (row(asks(call(name="")), END), "messages[1].tool_calls[0].function.name: the function's name is needed"),
        (row(asks({"type": "custom", "custom": {}}), END), "messages[1].tool_calls[0].type: only calls of type"),
        (row(asks(call(call_id=7)), END), "messages[1].tool_calls[0].id: text is needed"),
        (row(asks() | {"tool_calls": "none"}, END), "messages[1].tool_calls: a list of calls is needed"),
        (row(asks(call()), answer(call_id="c9"), END), "messages[2].tool_call_id: tool_call_id 'c9' is no call"),
        (row(answer(), END), "messages[1]: a tool's answer before any assistant message"),
        ({"messages": [USER | {"tool_calls": [call()]}, END]}, "messages[0].tool_calls: only an assistant message"),
        (row(asks(call()) | {"function_call": {"name": "open", "arguments": "{}"}}, END), "not both"),
        (row(END, functions=[OPEN]), "functions: a row has tools or the older functions, not both"),
        (row(END, tools=[{"type": "web_search"}]), "tools[0].type: only tools of type"),
        (row(END, tools=[{"type": "function", "function": {}}]), "tools[0].function.name: the function's name"),
        (row(END, tools={"open": OPEN}), "tools: a list of tools is needed, this is an object"),
        (row(END, tools=0), "tools: a list of tools is needed, this is a number"),
        (row(END, tools="[{]"), "tools: tools as text must be JSON"),
        (row(END, tools='[{"name": "a", "name": "b"}]'), "[0].name: the object gives 'name' twice"),
        (row(END, tools=[{"type": "function", "function": OPEN | {"parameters": []}}]), "function.parameters"),
        (row(END, parallel_tool_calls="yes"), "parallel_tool_calls: true or false is needed"),
        (row(END | {"tool_calls": None, "content": None}), "messages[1].content: text is needed, this is null"),
        (row(END | {"content": None, "refusal": "I cannot."}), "messages[1].refusal: content is null"),
        (row(END | {"content": None, "audio": {"id": "x"}}), "messages[1].audio: content is null"),
        (row(END | {"thinking": "a", "reasoning": "b"}), "messages[1].reasoning: reasoning differs"),
        ({"messages": [USER | {"thinking": "a"}, END]}, "messages[0].thinking: only an assistant message"),
        (row(asks(call(name="o\ud800")), END), "half a surrogate pair"),
        (row(asks(call('{"a": "\\ud800"}')), END), "half a surrogate pair"),
    ],
)
def test_what_is_wrong_with_tools_and_calls_is_named_by_line_and_field(tmp_path, bad, said):
    assert said in refused(tmp_path, bad)


def test_tools_of_a_text_row_are_refused_as_nothing_would_render_them(tmp_path):
    with pytest.raises(DataError, match="line 1, tools: tools need messages"):
        read(tmp_path, {"prompt": "a", "completion": "b", "tools": TOOLS})


def test_arguments_nested_deeper_than_can_be_read_are_refused(tmp_path):
    assert "nested too deeply" in refused(tmp_path, row(asks(call('{"a": ' + "[" * 3000 + "]" * 3000 + "}")), END))


def test_every_new_field_is_part_of_the_fingerprint(tmp_path):
    rows = [
        row(asks(call()), answer(), END),
        row(asks(call()), answer(), END, tools=[{"type": "function", "function": OPEN | {"description": "x"}}]),
        row(asks(call('{"drawer": 4}')), answer(), END),
        row(asks(call(name="shut")), answer(), END),
        row(asks(call(call_id="c2")), answer(call_id="c2"), END),
        row(asks(call()), answer(call_id=""), END),
        row(asks(call()), answer(name="other"), END),
        row(asks(call(), reasoning_content="a"), answer(), END),
        row(asks(call()), answer(), END, tools=[]),
    ]
    assert len({fingerprint(read(tmp_path, one)) for one in rows}) == len(rows)


def test_the_fingerprint_of_a_row_without_the_new_fields_is_what_stored_runs_have(tmp_path):
    rows = [{"messages": [{"role": "system", "content": "é"}, USER, END | {"weight": 0}, USER, END]}]
    assert fingerprint(read(tmp_path, *rows)) == "c338481d2ca80778e0ed7c247452a49bb90ff128b108c989f9dbf1529413169e"
    pairs = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    assert fingerprint(read(tmp_path, *pairs)) == "b1b291ece6225e92a233bcc043251d0e5e4ec1e81540982932832643942de037"


def test_a_data_set_s_columns_add_no_nulls_to_arguments_and_tools(tmp_path):
    from datasets import Dataset

    other = [{"type": "function", "function": {"name": "shut", "strict": True, "parameters": {"type": "object"}}}]
    rows = [
        row(asks(call({"drawer": 3})), answer(), END),
        row(asks(call({"door": "x"}, name="shut")), answer(), END, tools=other),
    ]
    for message in (message for one in rows for message in one["messages"]):
        message.setdefault("tool_calls", None)
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "set"))
    records = load_records(tmp_path / "set")
    assert [r.messages[1].tool_calls[0].arguments for r in records] == ['{"drawer": 3}', '{"door": "x"}']
    assert json.loads(records[1].tools) == other
    assert "strict" not in records[0].tools
