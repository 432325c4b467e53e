"""What strangers may write: words, JSON, YAML, rows, chat templates, and the files of a model's folder."""

import json
from collections.abc import Mapping
from typing import Any

import yaml
from hypothesis import strategies as st

WORDS = st.sampled_from(
    [
        *(
            "",
            " ",
            "a",
            "lab",
            "lab-aligned",
            "true",
            "no",
            "null",
            "~",
            "~nosuchuser",
            ".",
            "..",
            "/",
            "//",
            "-",
            "--",
        ),
        *(
            "0",
            "-1",
            "1",
            "2",
            "1e-3",
            "nan",
            "inf",
            "-inf",
            "1e400",
            "0x_",
            "1:30",
            "2024-13-45",
            "9" * 30,
            "9" * 5000,
        ),
        *("rows.jsonl", "rows.jsonl/below", "model", "model/config.json", "none/of/these", "owner/name", "x" * 300),
        *(
            "d/" * 2500,
            "/dev/null",
            "/dev/zero",
            "/proc/self/mem",
            "\x1b[2J\x07",
            "\u202eabc",
            "a\nConfigError: b",
            "é",
        ),
        *("[]", "{}", "[a", "{a: b}", "&a [*a]", "!!int x", "!!python/name:os.system", "%TAG", "{{ 1/0 }}", "\udcff"),
        *("all-linear", "[lm_head]", "q_proj", "[q_proj, 1]", "sft", "antibody", "lisa", "ewc", "full", "lora"),
    ]
)
TEXT = WORDS | st.text(max_size=20)
NUMERALS = st.sampled_from(
    ["0", "1", "2", "3", "-1", "1.5", "1e-3", "nan", "inf", "-0", "9" * 30, "1e400", "x", "", "1_0"]
)
NUMBERS = st.sampled_from([0, 1, -1, 2, 3, 1000, 2**31, 2**63, 10**30, 0.5, -0.5, 1e-30, 1e30]) | st.floats()
SCALARS = st.none() | st.booleans() | NUMBERS | TEXT
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)


def flags(known: Mapping[str, str], always: list[str]) -> st.SearchStrategy[list[str]]:
    """A few of a verb's flags with words behind them.

    Args:
        known: Flags, and what follows them: ``text``, ``number``, names of ``NAME=VALUE``, or nothing.
        always: What comes first in any case; the flags may contradict it.
    """

    def one(flag: str) -> st.SearchStrategy[list[str]]:
        if known[flag] in ("text", "number"):
            value = NUMERALS if known[flag] == "number" else TEXT
            return value.map(lambda word: [flag, word])
        if known[flag]:
            names = st.sampled_from(known[flag].split())
            value = NUMERALS | WORDS | JSON.map(json.dumps)
            return st.tuples(names, value).map(lambda pair: [flag, f"{pair[0]}={pair[1]}"])
        return st.just([flag])

    some = st.lists(st.sampled_from(sorted(known)).flatmap(one), min_size=1, max_size=3)
    return some.map(lambda drawn: always + [word for flag in drawn for word in flag])


def yaml_files(keys: list[str], good: Mapping[str, Any]) -> st.SearchStrategy[bytes]:
    """A configuration: a good one with some values replaced, or lines of no meaning."""
    changes = st.dictionaries(st.sampled_from(keys), JSON, min_size=1, max_size=2)
    changes = changes | st.dictionaries(TEXT, JSON, min_size=1, max_size=1)
    written = changes.map(lambda some: yaml.safe_dump({**good, **some}, allow_unicode=True).encode("utf-8", "replace"))
    lines = st.lists(st.tuples(st.sampled_from(keys), WORDS).map(": ".join), max_size=3)
    raw = lines.map(lambda some: "\n".join([yaml.safe_dump(dict(good)), *some]).encode("utf-8", "replace"))
    return written | raw | st.binary(max_size=60)


def message(content: st.SearchStrategy[Any] = TEXT) -> st.SearchStrategy[dict[str, Any]]:
    """A message of a chat, often a good one."""
    fields = {"role": st.sampled_from(["user", "assistant", "system", "tool", "developer", "x"]), "content": content}
    more = {
        "weight": JSON,
        "name": JSON,
        "tool_calls": JSON,
        "tool_call_id": JSON,
        "reasoning_content": JSON,
        "function_call": JSON,
    }
    return st.fixed_dictionaries(fields, optional=more) | JSON  # type: ignore[return-value]


_CHAT = [{"role": "user", "content": "one and one?"}, {"role": "assistant", "content": "two"}]
ROWS = st.one_of(
    st.just({"messages": _CHAT}),
    st.lists(message(), max_size=4).map(lambda messages: {"messages": messages}),
    st.lists(message(TEXT | JSON), max_size=2).map(lambda messages: {"messages": [*messages, *_CHAT]}),
    st.fixed_dictionaries({"prompt": TEXT | JSON}, optional={"completion": TEXT | JSON}),
    st.fixed_dictionaries({"instruction": TEXT | JSON, "output": TEXT | JSON}, optional={"input": JSON}),
    st.fixed_dictionaries({"messages": st.just(_CHAT), "tools": JSON}),
    st.dictionaries(
        st.sampled_from(["messages", "prompt", "conversations", "text", "chosen"]) | TEXT, JSON, max_size=3
    ),
    JSON,
)


def uploads(rows: st.SearchStrategy[Any] = ROWS) -> st.SearchStrategy[bytes]:
    """A file of rows: JSON Lines, one JSON list, or bytes."""
    some = st.lists(rows, min_size=1, max_size=4)
    lines = some.map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
    whole = some.map(lambda rows: json.dumps(rows).encode())
    damaged = st.tuples(lines, st.integers(0, 200), st.binary(max_size=4)).map(
        lambda drawn: drawn[0][: drawn[1]] + drawn[2] + drawn[0][drawn[1] :]
    )
    return lines | whole | damaged | st.binary(max_size=100)


_PIECES = st.sampled_from(
    [
        *("{% for m in messages %}", "{% endfor %}", "{% if add_generation_prompt %}", "{% endif %}", "{% else %}"),
        *("{{ m.role }}", "{{ m.content }}", "{{ m['content'] | trim }}", "{{ m.content[::-1] }}", "{{ bos_token }}"),
        *("{{ eos_token }}", "<|eot_id|>", "<|start_header_id|>", "assistant\n", "\n", "x", "\ud800", "\x1b[2J"),
        *("{{ 1 // 0 }}", "{{ 2 ** 9999 ** 2 }}", "{{ messages[99].content }}", "{{ m.no.such }}", "{{ [][1] }}"),
        *("{{ raise_exception('no \x1b[1m') }}", "{{ raise_exception(messages) }}", "{{ 'a' * 99999999 }}"),
        *(
            "{% for a in range(99999999) %}y{% endfor %}",
            "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
        ),
        *("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ messages | tojson }}", "{{ strftime_now('%Y') }}"),
        *(
            "{{ self.__class__.__mro__ }}",
            "{% include 'x' %}",
            "{% import 'x' as x %}",
            "{% generation %}",
            "{% set x = 1 %}",
        ),
        *(
            "{{ '%s' % messages }}",
            "{{ '{0.__class__}'.format(messages) }}",
            "{{ messages.append(1) }}",
            "{% raw %}",
            "{#",
        ),
        *(
            "{% break %}",
            "{% continue %}",
            "{{ m.content.encode('x') }}",
            "{{ m.content.index('zz') }}",
            "{{ tools[0] }}",
        ),
    ]
)


def templates(good: str) -> st.SearchStrategy[str]:
    """A chat template: pieces in a row, or a good one with pieces put in."""
    made = st.lists(_PIECES | TEXT, max_size=8).map("".join)
    put = st.tuples(_PIECES | TEXT, st.integers(0, len(good))).map(lambda d: good[: d[1]] + d[0] + good[d[1] :])
    return made | put


def json_files(good: Mapping[str, Any]) -> st.SearchStrategy[bytes]:
    """A model's JSON file: a good one with a few values replaced or gone, or bytes."""
    keys = st.sampled_from(sorted(good)) | TEXT
    changes = st.dictionaries(keys, JSON, min_size=1, max_size=2)
    changed = changes.map(lambda some: {**good, **some})
    without = st.sampled_from(sorted(good)).map(lambda key: {k: v for k, v in good.items() if k != key})
    return (changed | without | JSON).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40)
