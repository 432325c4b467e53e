import random

from antibody_llm.data.records import Message, Record, Template
from antibody_llm.screening.report import NUM_CHARACTERS_SHOWN, NUM_ROWS_SHOWN, MostSuspicious, visible


def record(text):
    return Record(0, (Message("user", text), Message("assistant", "b")), Template.CHAT, "tests", 1)


def test_the_most_suspicious_rows_are_kept_and_among_equals_the_earlier():
    evidence = [random.Random(3).choice(range(50)) / 10 for _ in range(1000)]
    kept = MostSuspicious()
    for position, value in enumerate(evidence):
        kept.offer(position, value, record(str(position)))
    expected = sorted(range(1000), key=lambda position: (-evidence[position], position))[:NUM_ROWS_SHOWN]
    assert [row.position for row in kept.sorted()] == expected
    assert [row.turns[0][1] for row in kept.sorted()] == [str(position) for position in expected]


def test_a_long_text_is_cut_and_says_so():
    kept = MostSuspicious()
    kept.offer(0, 1.0, record("x" * (NUM_CHARACTERS_SHOWN + 7)))
    (row,) = kept.sorted()
    assert row.turns[0][1] == "x" * NUM_CHARACTERS_SHOWN + " [... 7 more characters]"


def test_characters_that_turn_hide_or_control_text_are_shown_by_their_number():
    assert visible("a\u202eb\u2066c\u200bd\x1b[31me\x00") == "a[U+202E]b[U+2066]c[U+200B]d[U+001B][31me[U+0000]"
    assert visible("two\n\tlines, grüße, 你好, שלום") == "two\n\tlines, grüße, 你好, שלום"
