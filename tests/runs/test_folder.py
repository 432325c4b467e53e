from pathlib import Path

import pytest

from antibody.errors import OutputError
from antibody.runs.folder import State, open_run, write_text
from antibody.runs.result import RunResult

ONE, OTHER = (
    {"verb": "finetune", "training": {"learning_rate": 1.0}},
    {"verb": "finetune", "training": {"learning_rate": 2.0}},
)


def complete(output: Path, config: dict, *, overwrite: bool = False) -> None:
    folder = open_run(output, config, overwrite=overwrite)
    folder.begin("{}")
    write_text(folder.path / "made", str(config))
    folder.finish(RunResult(output=folder.final, model=None, metrics={}, seconds=1.0, num_rows=1))


def test_looking_at_a_folder_writes_nothing(tmp_path):
    assert open_run(tmp_path / "a", ONE).state is State.NEW
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_partial_until_its_result_is_there(tmp_path):
    open_run(tmp_path / "a", ONE).begin("{}")
    assert open_run(tmp_path / "a", ONE).state is State.PARTIAL
    complete(tmp_path / "a", ONE)
    assert open_run(tmp_path / "a", ONE).state is State.COMPLETE


def test_another_configuration_is_refused_and_the_difference_named(tmp_path):
    complete(tmp_path / "a", ONE)
    with pytest.raises(OutputError, match=r"training.learning_rate is 1.0 there, 2.0 here.*--overwrite"):
        open_run(tmp_path / "a", OTHER)


def test_overwriting_leaves_the_old_run_alone_until_the_new_one_is_complete(tmp_path):
    complete(tmp_path / "a", ONE)
    folder = open_run(tmp_path / "a", OTHER, overwrite=True)
    folder.begin("{}")
    assert open_run(tmp_path / "a", ONE).state is State.COMPLETE  # as if killed here
    assert open_run(tmp_path / "a", OTHER, overwrite=True).state is State.PARTIAL
    complete(tmp_path / "a", OTHER, overwrite=True)
    assert open_run(tmp_path / "a", OTHER).state is State.COMPLETE
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_kill_between_completion_and_replacement_is_mended_by_the_same_command(tmp_path, monkeypatch):
    complete(tmp_path / "a", ONE)

    def killed(old, new):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("antibody.runs.folder._take_the_place_of", killed)
        with pytest.raises(KeyboardInterrupt):
            complete(tmp_path / "a", OTHER, overwrite=True)
    assert open_run(tmp_path / "a", ONE).state is State.COMPLETE
    assert open_run(tmp_path / "a", OTHER, overwrite=True).state is State.COMPLETE
    assert open_run(tmp_path / "a", OTHER).state is State.COMPLETE


def test_what_is_no_run_is_moved_aside_and_never_deleted(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("years of work")
    complete(tmp_path / "a", ONE, overwrite=True)
    assert (tmp_path / "a.replaced" / "thesis.txt").read_text() == "years of work"
    assert open_run(tmp_path / "a", ONE).state is State.COMPLETE


def test_a_run_that_fails_before_its_first_checkpoint_leaves_no_folder(tmp_path):
    folder = open_run(tmp_path / "a", ONE)
    folder.begin("{}")
    folder.abandon()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_has_a_checkpoint_keeps_it(tmp_path):
    folder = open_run(tmp_path / "a", ONE)
    folder.begin("{}")
    (folder.path / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    folder.abandon()
    assert open_run(tmp_path / "a", ONE).state is State.PARTIAL


def test_resume_needs_something_to_resume(tmp_path):
    with pytest.raises(OutputError, match="no run to resume"):
        open_run(tmp_path / "a", ONE, resume=True)


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(OutputError, match="a file stands there"):
        open_run(tmp_path / "a", ONE)


def test_a_file_that_does_not_fit_leaves_the_old_one(tmp_path, monkeypatch):
    write_text(tmp_path / "f", "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_text(tmp_path / "f", "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("f", "old")]


def renames(monkeypatch, refused):
    """Path.rename, which fails where ``refused`` says so of (from, to)."""
    real = Path.rename

    def rename(self, target):
        if refused(self, target):
            raise OSError(16, "Device or resource busy")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)


def test_a_run_that_cannot_take_its_place_stays_whole_beside_and_the_old_one_where_it_was(tmp_path, monkeypatch):
    complete(tmp_path / "a", ONE)
    with monkeypatch.context() as patch:
        renames(patch, lambda old, new: old == tmp_path / "a")
        with pytest.raises(OutputError, match=r"was there is unchanged and the new run is whole, in .*\.a\.overwrite"):
            complete(tmp_path / "a", OTHER, overwrite=True)
    assert (tmp_path / "a" / "made").read_text() == str(ONE)
    assert (tmp_path / ".a.overwrite" / "made").read_text() == str(OTHER)
    assert open_run(tmp_path / "a", OTHER, overwrite=True).state is State.COMPLETE
    assert (tmp_path / "a" / "made").read_text() == str(OTHER)


def test_where_the_old_run_cannot_be_put_back_it_is_said_where_it_is(tmp_path, monkeypatch):
    complete(tmp_path / "a", ONE)
    with monkeypatch.context() as patch:
        renames(patch, lambda old, new: new == tmp_path / "a")
        with pytest.raises(OutputError, match=r"busy\)\. What was there is now .*a\.replaced and the new run is whole"):
            complete(tmp_path / "a", OTHER, overwrite=True)
    assert (tmp_path / "a.replaced" / "made").read_text() == str(ONE)
