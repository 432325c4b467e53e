"""What counts as a call of the calculator, in a completion and in a server's message; no model is trained."""

import json

import pytest
from benchmarks.tool_calls import parsed_call, served_call

CALL = ("calculator", {"expression": "48/2"})
QWEN = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "48/2"}}\n</tool_call>'
LLAMA = '{"name": "calculator", "parameters": {"expression": "48/2"}}'


@pytest.mark.parametrize("text", [QWEN, LLAMA])
def test_the_calls_of_both_templates_are_read(text):
    assert parsed_call(text) == CALL


@pytest.mark.parametrize(
    "text",
    [
        "#### 72",
        "72",
        "",
        QWEN[:-20],
        f"{QWEN}\n{QWEN}",
        LLAMA.replace("calculator", "lookup"),
        LLAMA.replace("expression", "sum"),
        LLAMA.replace('"48/2"', "24"),
    ],
)
def test_what_is_not_one_call_of_the_calculator_is_none(text):
    assert parsed_call(text) is None


def test_a_servers_message_is_read_from_its_calls_or_else_from_its_text():
    parsed = {"function": {"name": CALL[0], "arguments": json.dumps(CALL[1])}}
    assert served_call({"content": "", "tool_calls": [parsed]}) == CALL
    assert served_call({"content": LLAMA, "tool_calls": None}) == CALL
    assert served_call({"content": LLAMA, "tool_calls": [parsed, parsed]}) is None
    assert served_call({"content": "#### 72"}) is None
