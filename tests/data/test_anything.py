"""Whatever an upload holds, it is read or refused with a message: nothing else escapes."""

import json
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from antibody_llm.data.convert import canonical
from antibody_llm.data.duplicates import overlap, repeats
from antibody_llm.data.formats import RowReader, fingerprint, load_records
from antibody_llm.data.problems import BadRow
from antibody_llm.errors import DataError

NAMES = (
    "messages prompt completion instruction input output conversations tools functions parallel_tool_calls system role "
    "content weight tool_calls tool_call_id function_call function name arguments id type text from value thinking "
    "reasoning_content refusal audio chosen rejected preferred_output reference_answer grader data"
)
FIELDS = st.sampled_from(NAMES.split(" "))
TEXTS = "user assistant system developer tool function human gpt observation function_call text open {} [] {x null"
WORDS = st.sampled_from(TEXTS.split(" ")) | st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELDS | WORDS, inner, max_size=5),
    max_leaves=12,
)
FUNCTIONS = st.fixed_dictionaries({"name": WORDS, "arguments": WORDS | VALUES})
CALLS = st.fixed_dictionaries({"function": FUNCTIONS}, optional={"id": st.sampled_from(["a", "b", "", None])})
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool", "function"]), "content": WORDS | VALUES},
    optional={
        "tool_calls": st.lists(CALLS, max_size=3) | VALUES,
        "tool_call_id": st.sampled_from(["a", "b", "", None]),
        "function_call": FUNCTIONS,
        "weight": st.sampled_from([0, 1, None, 0.5]),
        "thinking": WORDS,
        "name": WORDS,
    },
)
CHATS = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGES, min_size=1, max_size=6)}, optional={"tools": VALUES, "functions": VALUES}
)
ROWS = VALUES | CHATS | st.dictionaries(FIELDS, VALUES, max_size=5)
BOUNDED = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def attempt(read, error):
    """What ``read`` returns, or the error that it raises."""
    try:
        return read(), None
    except error as problem:
        return None, problem


@BOUNDED
@given(row=ROWS, trainable=st.booleans())
def test_any_value_is_a_record_or_a_bad_row_and_every_record_converts(row, trainable):
    reader = RowReader("rows", trainable=trainable)
    record, refused = attempt(lambda: reader.read(0, 1, row), BadRow)
    if record is None:
        assert isinstance(refused, BadRow)
        assert str(refused)
        assert (str(refused) + refused.field).isprintable()
        assert len(str(refused)) < 3000
        return
    assert fingerprint([record])
    assert str(repeats([record, record])) or True
    assert overlap([record], [record], names=("a", "b")).exact == ((1, 1),)
    made = canonical(record, row, form=reader.first[1])
    again = RowReader("rows", trainable=trainable).read(0, 1, json.loads(made.line()))
    assert [m.role for m in again.messages] == [m.role for m in record.messages]
    assert [m.trained for m in again.messages] == [m.trained for m in record.messages]
    assert [[c.arguments for c in m.tool_calls] for m in again.messages] == [
        [c.arguments for c in m.tool_calls] for m in record.messages
    ]


@BOUNDED
@given(
    content=st.binary(max_size=60)
    | st.text(alphabet='{}[]":,ab\\u0 1e\n\r\t\ud800é-+.', max_size=60).map(
        lambda t: t.encode("utf-8", "surrogatepass")
    )
    | st.lists(ROWS.map(json.dumps), max_size=4).map(lambda rows: "\n".join(rows).encode())
    | st.lists(ROWS, max_size=4).map(lambda rows: json.dumps(rows).encode())
)
def test_any_bytes_are_rows_or_one_message(tmp_path: Path, content):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    records, refused = attempt(lambda: load_records(path), DataError)
    assert records or (str(refused).startswith(str(path)) and str(refused).isprintable())
