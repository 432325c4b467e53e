import time

import pytest

from antibody_llm.errors import AntibodyError, ConfigError, DataError
from antibody_llm.text import MAX_MESSAGE, counted, cut, escaped, named, quoted

HOSTILE = {
    "escape sequence": "\x1b[2J\x1b]0;owned\x07",
    "eight-bit escape": "\x9b31m",
    "bell and backspace": "\x07\x08",
    "carriage return": "fine\rConfigError: none",
    "bidi override": "user\u202egnp.exe",
    "bidi isolate": "\u2066\u2069",
    "half a surrogate": "\ud800",
    "line separator": "a\u2028b",
    "byte order mark": "\ufeff",
    "tag character": "\U000e0041",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_that_a_terminal_would_obey_comes_through(name):
    for shown in (escaped(HOSTILE[name]), quoted(HOSTILE[name]), quoted({HOSTILE[name]: [HOSTILE[name]]})):
        assert shown.isprintable()
    for error in (AntibodyError, ConfigError, DataError):
        assert str(error(f"a.jsonl, line 3: {HOSTILE[name]}")).isprintable()


def test_words_of_any_language_stay_as_they_are():
    for text in ("naïve café", "日本語　の文", "שלום", "emoji 🎉", "a\u00a0b"):
        assert escaped(text) == text


def test_a_line_break_cannot_begin_a_line_of_its_own():
    assert str(DataError("field a\nConfigError: all is well")) == "field a ConfigError: all is well"
    assert quoted("a\nb") == "'a\\nb'"


def test_the_middle_of_a_long_message_is_cut_and_its_end_stays():
    shown = str(DataError("a.jsonl, line 3: " + "x" * 10**6 + " Remove the line."))
    assert len(shown) <= MAX_MESSAGE + 60
    assert shown.startswith("a.jsonl, line 3: xxx")
    assert shown.endswith("Remove the line.")
    assert cut("short") == "short"


def test_a_value_is_cut_before_it_is_written_out():
    bomb = ["x"] * 10
    for _ in range(12):
        bomb = [bomb] * 10
    recursive = []
    recursive.append({"x": recursive})
    deep = []
    for _ in range(10_000):
        deep = [deep]
    started = time.monotonic()
    for value in (bomb, recursive, deep, "r" * 10**7, b"b" * 10**6, 10**9_000, {f"k{i}": i for i in range(10**5)}):
        assert len(quoted(value)) <= 200
        assert quoted(value).isprintable()
    assert time.monotonic() - started < 2


def test_small_values_are_quoted_whole():
    for value in ("tau", -1, 0.5, None, True, ["a", 1], {"a": 1}, ""):
        assert quoted(value) == repr(value)


def test_names_are_cut_one_by_one():
    shown = named(["a", "\x1b[1m", "z" * 1000, *map(str, range(20))])
    assert shown.startswith("a, \\x1b[1m, zzz")
    assert shown.endswith("(13 more)")
    assert len(shown) < 400


def test_a_number_is_written_with_its_noun():
    assert [counted(num, "row") for num in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
    assert counted(2, "entry", "entries") == "2 entries"
