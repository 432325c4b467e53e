import json
import logging

import pytest

from antibody_llm import events
from antibody_llm.events import (
    CheckpointSaved,
    Event,
    Level,
    Measured,
    Notice,
    Progress,
    RowsSkipped,
    StepDone,
    Stopped,
    Wish,
    inform,
    listening,
    recall,
    report_progress,
    reports,
    stop_asked,
    warn,
    warned,
)
from antibody_llm.mentions import setting

STEP = StepDone(step=3, max_steps=7, epoch=0.5, loss=1.5, learning_rate=1e-3, tokens=80, metrics={"lam": float("nan")})
EXAMPLES = [
    Progress(what="screening", done=1, total=2),
    STEP,
    Notice(message=f"give {setting('base')}", level=Level.WARNING, field="base"),
    RowsSkipped(source="user.jsonl", lines=(3, 9), why="too long"),
    CheckpointSaved(step=3, path="run/checkpoints/checkpoint-3"),
    Measured(values={"harmful_score": 0.25}),
]


def test_every_kind_of_event_is_strict_json_under_a_name_of_its_own():
    assert {type(event) for event in EXAMPLES} == set(Event.__subclasses__())
    stored = [json.loads(json.dumps(event.to_json(), allow_nan=False)) for event in EXAMPLES]
    assert [event["event"] for event in stored] == [
        *("progress", "step_done", "notice", "rows_skipped", "checkpoint_saved", "measured")
    ]
    assert stored[1]["metrics"] == {"lam": None}
    assert stored[2] == {"event": "notice", "message": "give base", "level": "warning", "field": "base"}
    assert stored[3]["lines"] == [3, 9]


def test_a_notice_is_one_printable_line_in_the_surface_s_spelling():
    notice = Notice(message=f"\x1b[2J\n{setting('base', 'lab')}", level=Level.INFO)
    assert notice.spelled(lambda name, value: f"--{name} {value}") == "\\x1b[2J --base lab"
    assert notice.spelled() == "\\x1b[2J base='lab'"


def test_the_innermost_listener_hears_and_a_block_without_one_leaves_it_to_the_outer():
    outer, inner = [], []
    with listening(outer.append):
        inform("one")
        with listening():
            inform("two")
        with listening(inner.append):
            inform("three")
        inform("four")
    assert [event.message for event in outer] == ["one", "two", "four"]
    assert [event.message for event in inner] == ["three"]


def test_without_a_listener_notices_are_logged_and_nothing_else_is(caplog):
    with caplog.at_level(logging.INFO, logger="antibody"):
        inform("a note")
        warn(f"give {setting('base')}")
        events.emit(STEP)
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [("INFO", "a note"), ("WARNING", "give base")]


def test_with_a_listener_nothing_is_logged(caplog):
    with listening(lambda event: None):
        warn("heard")
    assert not caplog.records


def test_warnings_are_kept_once_each_for_the_verb_that_gave_them():
    assert warned() == ()
    with listening(lambda event: None):
        inform("no warning")
        warn(f"a {setting('base', 'lab')}")
        warn(f"a {setting('base', 'lab')}")
        with listening():
            warn("of a verb inside")
        recall(["earlier", "a base='lab'"])
        assert warned() == ("a base='lab'", "earlier")
    assert warned() == ()


def test_a_notice_names_the_setting_that_it_mentions_first():
    heard = []
    with listening(heard.append):
        warn(f"{setting('training.max_grad_norm', '0')} or {setting('base')}")
    assert heard[0].field == "training.max_grad_norm"


def test_a_wish_to_stop_ends_the_verb_where_it_can_end_and_not_before():
    with listening(lambda event: Wish.STOP if isinstance(event, Notice) else None):
        report_progress("rows", 0, 4)
        assert not stop_asked()
        inform("here it is asked for")
        with listening(), pytest.raises(Stopped, match=r"rows, 2 of 4.*same call"):  # noqa: PT012
            assert stop_asked()
            report_progress("rows", 2, 4)
    assert not stop_asked()


def test_a_decorated_verb_is_heard_by_its_own_listener():
    @reports
    def verb(number, *, listen=None):
        warn(f"verb {number}")
        return warned()

    heard = []
    assert verb(1, listen=heard.append) == ("verb 1",)
    with listening(heard.append):
        assert verb(2) == ("verb 2",)
    assert [event.message for event in heard] == ["verb 1", "verb 2"]


def test_only_the_first_of_several_processes_is_heard(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    heard = []
    with listening(heard.append):
        warn("on the second")
        assert warned() == ("on the second",)
    assert heard == []
