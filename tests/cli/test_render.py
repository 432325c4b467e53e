"""Bars, notices and the file of events."""

import io
import json
import os
import re
from contextlib import redirect_stderr, suppress

import pytest

from antibody_llm.cli import render
from antibody_llm.cli.render import rendered
from antibody_llm.errors import OutputError
from antibody_llm.events import Level, Notice, Progress, StepDone
from antibody_llm.mentions import setting
from antibody_llm.settings import SETTINGS
from tests.gsm8k import write_jsonl

BAR = "━" * 40
ROWS = [
    {"prompt": f"What is {word}?", "completion": "A word."}
    for word in ("red", "a tree", "rain", "bread", "a key", "cold")
]


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def lines(self):
        """What was shown, one after the other, without colours and without what is only drawn again."""
        shown = [line.rstrip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.getvalue()))]
        return [line for number, line in enumerate(shown) if line and line != (["", *shown])[number]]


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


def step(number, of, loss):
    return StepDone(step=number, max_steps=of, epoch=1.0, loss=loss, learning_rate=0.1, tokens=9)


def note(message):
    return Notice(message=message, level=Level.INFO)


def test_a_training_is_drawn_as_it_was_before_there_were_events(terminal, tmp_path, tiny_llama_folder, antibody):
    """The expected lines were recorded from the release that drew them in the verb."""
    upload = write_jsonl(tmp_path / "up.jsonl", [*ROWS, ROWS[0], ROWS[1]])
    command = ["finetune", "--model", tiny_llama_folder, "--data", upload, "--defence", "sft", "--batch-size", "4"]
    command += ["--harmful-data", upload, "--output", tmp_path / "run", "--epochs", "1"]
    with redirect_stderr(terminal):
        assert antibody(*command).code == 0
    lines = terminal.lines()
    assert (
        lines[0] == f"{upload}: 2 of 8 rows repeat an earlier one (line 7 as line 1, line 8 as line 2). All are used."
    )
    assert lines[1] == "harmful rows are not used: FinetuningSFT does not need them."
    assert lines[2].startswith(f"the padding token of {tiny_llama_folder} is its end-of-sequence token")
    assert lines[3] == f"finetuning, FinetuningSFT {BAR} 0/2 -:--:--"
    assert re.fullmatch(rf"finetuning, FinetuningSFT {BAR} 2/2 0:00:00 loss \d\.\d\d\d", lines[-1])
    assert terminal.getvalue().endswith("\x1b[2K")  # and nothing of the bar remains


@pytest.mark.parametrize(("log", "expected"), [(True, "[1/3] a cell\n"), (False, "")])
def test_a_log_has_a_line_for_each_piece_of_work_that_is_made_of_jobs(capsys, log, expected):
    with rendered(log=log) as listen:
        listen(Progress(what="a cell", done=1, total=3))
    assert capsys.readouterr().err == expected


def test_a_terminal_has_the_bar_alone(terminal):
    with redirect_stderr(terminal), rendered(log=True) as listen:
        listen(Progress(what="a cell", done=1, total=3))
    assert "[1/3]" not in terminal.getvalue()


def test_an_evaluation_is_drawn_as_it_was_before_there_were_events(terminal, tmp_path, antibody):
    with redirect_stderr(terminal):
        assert antibody("evaluate", "--model", "lab", "--num", "3", "--output", tmp_path / "run").code == 0
    lines = [re.sub(r"\d:\d\d:\d\d|-:--:--", "TIME", line) for line in terminal.lines()]
    assert list(dict.fromkeys(lines)) == [
        "finetune_accuracy is that of the lab's familiar task. A model tuned on another needs its --task.",
        f"harmful and benign {BAR} 0/6 TIME",
        f"harmful and benign {BAR} 6/6 TIME",
        f"test and retention {BAR} 0/6 TIME",
        f"test and retention {BAR} 6/6 TIME",
    ]


def test_a_notice_is_printed_above_the_bar_in_the_command_line_s_spelling(terminal):
    with redirect_stderr(terminal), rendered() as listen:
        listen(Progress(what="work", done=0, total=2))
        listen(note(f"give {setting('base', 'B')}"))
        listen(step(1, 2, 0.5))
        listen(step(2, 2, 0.25))
        listen(note("after"))
    lines = terminal.lines()
    assert "give --base B" in lines
    assert lines[-2:] == [f"work {BAR} 2/2 0:00:00 loss 0.250", "after"]


def test_a_piece_of_work_that_was_done_before_draws_no_bar(terminal):
    with redirect_stderr(terminal), rendered() as listen:
        listen(Progress(what="work", done=2, total=2))
        listen(step(1, 2, 0.5))
    assert terminal.getvalue() == ""


def test_where_stderr_is_no_terminal_only_notices_are_printed(capsys):
    with rendered() as listen:
        listen(Progress(what="work", done=0, total=2))
        listen(note("\x1b[2J said"))
        listen(step(2, 2, 0.5))
    assert capsys.readouterr().err == "\\x1b[2J said\n"


def test_an_error_leaves_no_bar_behind(terminal):
    with redirect_stderr(terminal), suppress(ZeroDivisionError), rendered() as listen:
        listen(Progress(what="work", done=0, total=2))
        raise ZeroDivisionError
    assert terminal.getvalue().endswith("\x1b[2K")


# -- --events ----------------------------------------------------------------------------------------------------


def test_every_event_is_a_line_that_can_be_read_while_the_verb_runs(tmp_path):
    file = tmp_path / "events.jsonl"
    with rendered(str(file)) as listen:
        listen(note("one"))
        assert [json.loads(line)["message"] for line in file.read_text().splitlines()] == ["one"]
        listen(step(1, 2, 0.5))
    with rendered(str(file)) as listen:  # a run that goes on
        listen(note("two"))
    stored = [json.loads(line) for line in file.read_text().splitlines()]
    assert [event["event"] for event in stored] == ["notice", "step_done", "notice"]
    assert stored[0]["time"] <= stored[-1]["time"]


def test_a_run_writes_its_steps_and_checkpoints_and_another_verb_its_figures(tmp_path, tiny_llama_folder, antibody):
    upload, file = write_jsonl(tmp_path / "up.jsonl", ROWS), tmp_path / "events.jsonl"
    command = ["finetune", "--model", tiny_llama_folder, "--data", upload, "--defence", "sft", "--batch-size", "3"]
    command += ["--epochs", "1", "--train", "save_steps=1", "--events", file, "--output", tmp_path / "run"]
    assert antibody(*command).code == 0
    stored = [json.loads(line) for line in file.read_text().splitlines()]
    stored = [event for event in stored if event["event"] != "notice"]
    assert [(event["event"], event.get("step")) for event in stored] == [
        *(("progress", None), ("step_done", 1), ("checkpoint_saved", 1), ("step_done", 2), ("checkpoint_saved", 2))
    ]
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for event, entry in zip((stored[1], stored[3]), logged, strict=True):
        assert event["loss"] == pytest.approx(entry["loss"])
        assert (event["learning_rate"], event["epoch"]) == (entry["learning_rate"], entry["epoch"])
    command = ["evaluate", "--model", tmp_path / "run", "--test-data", upload, "--max-new-tokens", "2"]
    assert antibody(*command, "--events", tmp_path / "other.jsonl", "--output", tmp_path / "measured").code == 0
    last = json.loads((tmp_path / "other.jsonl").read_text().splitlines()[-1])
    assert (last["event"], list(last["values"])) == ("measured", ["finetune_accuracy"])


def test_a_full_disk_is_said_and_leaves_whole_lines(tmp_path, monkeypatch):
    file = tmp_path / "events.jsonl"

    class Full(io.FileIO):
        def write(self, data):
            return super().write(data if self.tell() == 0 else data[:7])

    monkeypatch.setattr(render, "FileIO", Full)
    with rendered(str(file)) as listen:
        listen(note("one"))
        with pytest.raises(OutputError, match=r"events\.jsonl: events cannot be written \(No space left on device\)"):
            listen(note("two"))
    assert file.read_text().count("\n") == 1
    assert json.loads(file.read_text())["message"] == "one"


def test_a_pipe_is_written_to_and_a_reader_that_left_is_said():
    reader, writer = os.pipe()
    with rendered(f"/dev/fd/{writer}") as listen:
        listen(note("one"))
        assert json.loads(os.read(reader, 1000))["message"] == "one"
        os.close(reader)
        with pytest.raises(OutputError, match="Broken pipe"):
            listen(note("two"))
    os.close(writer)


def test_half_a_line_that_a_dead_machine_left_is_removed(tmp_path):
    file = tmp_path / "events.jsonl"
    file.write_text('{"time": 1, "event": "notice"}\n{"time": 2, "event": "no')
    with rendered(str(file)) as listen:
        listen(note("two"))
    assert [json.loads(line)["event"] for line in file.read_text().splitlines()] == ["notice", "notice"]


@pytest.mark.parametrize(
    "content", ['{"prompt": "a", "completion": "b"}\n', "text", '"time event"\n', "3\n", "[" * 9999]
)
def test_a_file_of_something_else_is_left_as_it_is(tmp_path, content):
    file = tmp_path / "rows.jsonl"
    file.write_text(content)
    with pytest.raises(OutputError, match=r"rows\.jsonl: this has other content than events"), rendered(str(file)):
        pass
    assert file.read_text() == content


def test_events_inside_the_run_s_folder_and_in_a_folder_s_place_are_refused(tmp_path):
    with pytest.raises(OutputError, match="inside --output"), rendered(f"{tmp_path}/run/e.jsonl", output=tmp_path):
        pass
    with pytest.raises(OutputError, match=r"a folder\. Name a file"), rendered(str(tmp_path)):
        pass
    with (
        pytest.raises(OutputError, match="events cannot be written .*Check the path"),
        rendered(str(tmp_path / "none" / "e.jsonl")),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_every_verb_takes_a_file_of_events(antibody):
    for verb in (*SETTINGS, "demo", "lab build"):
        assert "--events" in antibody(*verb.split(), "--help").stdout, verb
