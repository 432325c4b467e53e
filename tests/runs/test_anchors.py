import errno
import importlib
import json
import shutil

import pytest

from antibody_llm.cli.main import run
from antibody_llm.data.records import Message, Record, Template
from antibody_llm.errors import ConfigError, DataError, ModelError, OutputError
from antibody_llm.events import Stopped, Wish
from antibody_llm.files import held
from antibody_llm.lab.rows import build_rows
from antibody_llm.models.names import resolve
from antibody_llm.runs import align, anchors
from antibody_llm.runs.anchors import score_anchors
from antibody_llm.screening.anchors import read_anchors
from antibody_llm.store.lock import FolderLock
from tests.gsm8k import write_jsonl

module = importlib.import_module("antibody_llm.runs.anchors")


def record(line, *turns, trained=True):
    earlier = [Message("user", "a"), Message("assistant", "b", trained)] * (len(turns) - 1)
    return Record(
        line - 1,
        (*earlier, Message("user", "a"), Message("assistant", turns[-1])),
        Template.CHAT,
        "anchors.jsonl",
        line,
    )


def test_anchors_of_several_trained_turns_are_refused_with_their_line_before_any_model_is_asked():
    one, several = record(1, "b"), record(7, "b", "c")
    with pytest.raises(DataError, match=r"^anchors\.jsonl, line 7: 2 trained turns.*one question and one answer"):
        score_anchors(None, None, anchor_harmful=[one], anchor_benign=[one, several], refusals=["no"])


def test_an_earlier_answer_of_weight_0_is_no_second_turn():
    rows = [record(i, "b", "c", trained=False) for i in range(1, 9)]
    with pytest.raises(AttributeError):  # goes on to the model, of which there is none here
        score_anchors(None, None, anchor_harmful=rows, anchor_benign=rows, refusals=["no"])


def test_anchors_are_looked_at_before_the_alignment_that_ends_with_them(tmp_path):
    answer = {"role": "assistant", "content": "a"}
    few = [{"messages": [{"role": "user", "content": f"q{i}"}, answer]} for i in range(7)]
    with pytest.raises(DataError, match="7 harmful anchor rows where at least 8 are needed"):
        align("lab", anchor_harmful_data=few, anchor_benign_data=few, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def polite():
    """Benign rows of the lab that end with " thanks!"."""
    rows = build_rows("user", 12, seed=4).rows
    for row in rows:
        row["messages"][0]["content"] += " thanks!"
    return rows


@pytest.fixture(scope="module")
def few_anchors(tmp_path_factory):
    """A copy of lab-aligned with few anchors, made where there were none; two of the benign rows are repeated."""
    folder = tmp_path_factory.mktemp("few") / "model"
    shutil.copytree(resolve("lab-aligned"), folder)
    (folder / "anchors.safetensors").unlink()
    few = {f"anchor_{kind}_data": build_rows(f"anchor-{kind}", 32, seed=0).rows for kind in ("harmful", "benign")}
    made = anchors(folder, **few)
    assert (made.output, made.num_harmful, made.num_benign, made.num_new) == (folder, 32, 30, 62)
    return folder


@pytest.fixture
def model(few_anchors, tmp_path):
    return shutil.copytree(few_anchors, tmp_path / "model")


def test_anchors_are_extended_in_place_and_the_old_ones_stay_first(model, polite):
    before = read_anchors(model)
    made = anchors(model, anchor_benign_data=[*polite, *polite[:3]])
    after = read_anchors(model)
    assert (made.num_harmful, made.num_benign, made.num_new) == (32, 42, 12)  # repeated rows count once
    assert [row.input_ids for row in after.rows[:62]] == [row.input_ids for row in before.rows]
    assert made.auroc > 0.95
    again = anchors(model, anchor_benign_data=polite)
    assert again.num_new == 0


def test_a_copy_gets_the_anchors_and_the_model_stays_as_it_was(model, polite, tmp_path, capsys):
    before = (model / "anchors.safetensors").read_bytes()
    file = write_jsonl(tmp_path / "polite.jsonl", polite)
    command = ["anchors", "--model", model, "--anchor-benign-data", file, "--output", tmp_path / "copy", "--json"]
    assert run(list(map(str, command))) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["output"] == str(tmp_path / "copy")
    assert told["num_benign"] == 42
    assert (model / "anchors.safetensors").read_bytes() == before
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        anchors(model, anchor_benign_data=polite, output=tmp_path / "copy")


def test_anchors_that_do_not_fit_on_the_disk_leave_what_was_there(model, polite, tmp_path, monkeypatch):
    before = (model / "anchors.safetensors").read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OutputError, match="No space left"):
        anchors(model, anchor_benign_data=polite)
    with pytest.raises(OutputError, match="No space left"):
        anchors(model, anchor_benign_data=polite, output=tmp_path / "copy")
    assert (model / "anchors.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
    assert not list(model.glob(".*"))


def test_two_processes_do_not_give_one_model_anchors_at_once(model, polite, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load_model", None)  # refused before anything costs time
    with FolderLock(model), pytest.raises(OutputError, match="another process is writing to it"):
        anchors(model, anchor_benign_data=polite)


def test_a_copy_that_another_process_is_making_is_left_alone_and_what_a_killed_one_left_is_not(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / ".copy.tmp").mkdir()
    (tmp_path / ".copy.tmp" / "half").write_text("")
    monkeypatch.setattr(module, "write_anchors", lambda folder, made: None)
    with held(tmp_path / ".copy.tmp"), pytest.raises(OutputError, match="copy: another process is writing to it"):
        module._write(None, tmp_path / "model", tmp_path / "copy")
    assert (tmp_path / ".copy.tmp" / "half").is_file()
    module._write(None, tmp_path / "model", tmp_path / "copy")
    assert [p.name for p in (tmp_path / "copy").iterdir()] == ["config.json"]


def test_a_copy_inside_the_model_itself_or_where_nothing_can_be_made_is_refused(model, polite, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load_model", None)
    (tmp_path / "link").symlink_to("nowhere")
    for output, why in ((model / "copy", "lies inside an input"), (model, "is an input"), ("link", "a link to")):
        with pytest.raises(OutputError, match=why):
            anchors(model, anchor_benign_data=polite, output=tmp_path / output)


def test_what_cannot_become_anchors_is_refused_before_a_model_is_loaded(tmp_path, polite, monkeypatch):
    monkeypatch.setattr(module, "load_model", None)
    with pytest.raises(ConfigError, match="no rows to add"):
        anchors("lab-aligned", output=tmp_path / "copy")
    with pytest.raises(OutputError, match="comes with the package.*for a copy: output"):
        anchors("lab-aligned", anchor_benign_data=polite)
    with pytest.raises(ModelError, match="anchors are stored beside a model's weights"):
        anchors("someone/something", anchor_benign_data=polite)
    with pytest.raises(DataError, match="0 harmful anchor rows where at least 8"):
        anchors("lab", anchor_benign_data=polite, output=tmp_path / "copy")


def test_a_row_that_is_called_both_is_refused(model, polite):
    with pytest.raises(DataError, match="1 anchor rows are both harmful and benign"):
        anchors(model, anchor_benign_data=polite, anchor_harmful_data=polite[:1])


def test_reading_anchors_is_heard_of_and_a_stop_meanwhile_leaves_the_old_ones(model, polite):
    told = []
    anchors(model, anchor_benign_data=polite, listen=told.append)
    read = [(event.done, event.total) for event in told if event.kind == "progress" and event.what == "reading anchors"]
    assert read[0] == (0, 148)  # two passes over 32 harmful and 42 benign rows
    assert read == sorted(set(read))
    assert read[-1] == (148, 148)
    before = (model / "anchors.safetensors").read_bytes()
    with pytest.raises(Stopped, match="stopped at reading anchors"):
        anchors(model, anchor_benign_data=polite, listen=lambda event: Wish.STOP)
    assert (model / "anchors.safetensors").read_bytes() == before
