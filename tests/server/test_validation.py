"""The form of uploads: the rules of training, every fault with its place, and memory that does not grow."""

import io
import json
import resource
import sys
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antibody_llm.data.formats import load_records
from antibody_llm.errors import DataError
from antibody_llm.server.validation import validate, validate_blob
from tests.server.running import chat_rows, dpo_rows

LINE = 4 * 2**20
LIMITS = {"line_bytes": LINE, "memory_bytes": 2 * 2**30}


def faults(content, **limits):
    return validate(io.BytesIO(content), line_bytes=limits.get("line_bytes", LINE))


def row(*messages, **more):
    return json.dumps({"messages": list(messages), **more}).encode() + b"\n"


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def test_the_rows_of_a_good_file_are_counted():
    found = faults(chat_rows(7))
    assert (found.num_rows, found.num_faults, found.method, found.details()) == (7, 0, "supervised", None)


@pytest.mark.parametrize(
    ("content", "line", "field", "words"),
    [
        (row(USER, {"role": "bot", "content": "a"}), 1, "messages[1].role", "Roles:"),
        (row(USER), 1, "messages", "no assistant"),
        (row(USER, ANSWER, USER), 1, "messages[2].role", "last message"),
        (row(USER, ANSWER | {"weight": 2}), 1, "messages[1].weight", "0 (context only)"),
        (row(USER, ANSWER | {"content": 5}), 1, "messages[1].content", "text is needed"),
        (row(USER, {"role": "assistant"}), 1, "messages[1].content", "text is needed"),
        (row(USER, ANSWER, tools=[{"type": "function"}]), 1, "tools[0].function", "an object"),
        (chat_rows(1) + b"{'messages': []}\n", 2, None, "json.dumps"),
        (chat_rows(1) + b'{"a": 1, "a": 2}\n', 2, "a", "twice"),
        (chat_rows(1) + b"[" * 200_000 + b"\n", 2, None, "too deeply"),
        (chat_rows(1) + b'{"messages": "\xff"}\n', 2, None, "Not UTF-8"),
        (b"\xef\xbb\xbf" + chat_rows(1), 1, None, "byte order mark"),
        (b"", None, None, "empty"),
        (b"a,b\n1,2\n", 1, None, "not JSON"),
        (chat_rows(1) + b'{"prompt": "a", "completion": "b"}\n', 2, None, "Put each format"),
    ],
    ids=range(15),
)
def test_a_fault_has_its_place_and_its_remedy(content, line, field, words):
    (fault,) = faults(content).faults
    assert (fault.line, fault.field) == (line, field)
    assert words in fault.message
    assert "upload" not in fault.message.split(":")[0]


PAIR = json.loads(dpo_rows(1))


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"preferred_output": []}, "preferred_output", "one assistant message"),
        ({"preferred_output": None}, "preferred_output", "Add the field"),
        ({"preferred_output": PAIR["non_preferred_output"]}, "non_preferred_output", "are the same"),
        ({"non_preferred_output": [USER]}, "non_preferred_output[0].role", "assistant"),
        ({"non_preferred_output": [ANSWER | {"content": 1}]}, "non_preferred_output[0].content", "text"),
        ({"input": {"messages": [{"role": "x", "content": ""}]}}, "input.messages[0].role", "Roles:"),
        ({"input": {"messages": []}}, "input.messages", "empty"),
        ({"input": {}}, "input.messages", "a list of messages"),
        ({"input": []}, "input", "messages"),
        ({"input": {"messages": [USER], "tools": [1]}}, "input.tools[0]", "a tool is"),
    ],
    ids=range(10),
)
def test_a_fault_of_a_pair_has_its_place_too(changes, field, words):
    found = faults(dpo_rows(1) + json.dumps(PAIR | changes).encode())
    assert found.method == "dpo"
    assert [(fault.line, fault.field) for fault in found.faults] == [(2, field)]
    assert words in found.faults[0].message


@pytest.mark.parametrize(
    "row",
    [
        {name.replace("output", "completion"): value for name, value in PAIR.items()},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER | {"content": "b"}]},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
    ],
)
def test_pairs_have_other_names_too(row):
    found = faults(json.dumps(row).encode())
    assert (found.method, found.num_faults) == ("dpo", 0)


def test_pairs_and_rows_do_not_mix():
    assert "Put each format" in faults(dpo_rows(1) + chat_rows(1)).faults[0].message
    assert faults(chat_rows(1) + dpo_rows(1)).faults[0].line == 2


def test_a_long_file_is_read_in_a_process_of_its_own_with_the_same_result():
    content = chat_rows(8000) + b"{}\n"
    found = validate_blob(io.BytesIO(content), num_bytes=len(content), **LIMITS)
    assert found == faults(content)
    assert found.num_rows == 8001


def test_of_a_million_bad_lines_ten_thousand_are_counted_and_a_hundred_shown():
    content = b"{}\n" * 10**6
    found = validate_blob(io.BytesIO(content), num_bytes=len(content), **LIMITS)
    assert (found.num_rows, found.num_faults, len(found.faults)) == (10_000, 10_000, 100)
    assert "the others were not read" in found.details()


class Endless(io.RawIOBase):
    """One line that is very long, of which nothing is in memory."""

    def __init__(self, num_bytes):
        self.left = num_bytes

    def read(self, size=-1):
        num = min(self.left, size)
        self.left -= num
        return b"x" * num


@pytest.mark.parametrize("head", [b"", b"[", b'{"messages": ['])
def test_a_line_of_a_hundred_megabytes_takes_no_memory_here(head):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = validate_blob(Endless(100 * 2**20), num_bytes=100 * 2**20, **LIMITS)
    assert "onger than 4 MB" in found.faults[0].message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000


def test_a_row_that_takes_too_much_memory_is_a_fault_and_not_a_crash():
    content = b'{"messages": [' + b"[]," * 10**6 + b"[]]}\n"
    found = validate_blob(io.BytesIO(content), num_bytes=len(content), line_bytes=LINE, memory_bytes=60 * 2**20)
    assert "too much memory" in found.faults[0].message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool", "x"]), "content": st.text() | json_values},
        optional={"weight": json_values, "tool_calls": json_values, "name": json_values},
    ),
    max_size=4,
)
rows = st.fixed_dictionaries(
    {}, optional={"messages": messages | json_values, "tools": json_values, "prompt": json_values}
)
lines = st.one_of(
    rows.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=60),
    json_values.map(json.dumps).map(str.encode),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(lines, max_size=5))
def test_whatever_is_uploaded_is_accepted_exactly_if_training_reads_it(content):
    raw = b"\n".join(content)
    found = faults(raw)
    assert (found.num_faults == 0) == (found.details() is None)
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.write(raw)
        file.flush()
        try:
            num = len(load_records(file.name))
        except DataError:
            num = None
    if found.method == "supervised":
        assert (found.num_faults == 0) == (num is not None)
        assert num in (None, found.num_rows)
    json.dumps(found.to_json()).encode()


def test_the_process_that_reads_uploads_imports_no_torch():
    import subprocess

    code = "import sys, antibody_llm.server.validation; print('torch' in sys.modules, 'fastapi' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr
