import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from antibody_llm.errors import AntibodyError, OutputError
from antibody_llm.files import write_text
from antibody_llm.store import folder as module
from antibody_llm.store.folder import State, open_run
from antibody_llm.store.result import RunResult

ONE, OTHER = (
    {"verb": "finetune", "training": {"learning_rate": 1.0}},
    {"verb": "finetune", "training": {"learning_rate": 2.0}},
)


def complete(output: Path, config: dict, *, overwrite: bool = False) -> None:
    folder = open_run(output, config, overwrite=overwrite)
    if folder.state is State.COMPLETE:
        return
    folder.begin("{}")
    write_text(folder.path / "metrics.jsonl", str(config))
    (folder.path / "checkpoints" / "checkpoint-1").mkdir(parents=True, exist_ok=True)
    write_text(folder.path / "checkpoints" / "checkpoint-1" / "state", "?")
    (folder.path / "adapter").mkdir(exist_ok=True)
    write_text(folder.path / "adapter" / f"of-{config['training']['learning_rate']}", str(config))
    write_text(folder.path / "adapter" / "antibody.json", "{}")
    folder.finish(RunResult(output=folder.final, model=None, metrics={}, seconds=1.0, num_rows=1))


def tree(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_looking_at_a_folder_writes_nothing(tmp_path):
    assert open_run(tmp_path / "a", ONE).state is State.NEW
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_partial_until_its_result_is_there(tmp_path):
    started = open_run(tmp_path / "a", ONE)
    started.begin("{}")
    started.lock.release()  # as if killed here
    assert open_run(tmp_path / "a", ONE).state is State.PARTIAL
    complete(tmp_path / "a", ONE)
    assert open_run(tmp_path / "a", ONE).state is State.COMPLETE


def test_another_configuration_is_refused_and_the_difference_named(tmp_path):
    complete(tmp_path / "a", ONE)
    with pytest.raises(OutputError, match=r"training.learning_rate is 1.0 there, 2.0 here.*overwrite=True"):
        open_run(tmp_path / "a", OTHER)


def test_overwriting_leaves_the_old_run_alone_until_the_new_one_is_complete(tmp_path):
    complete(tmp_path / "a", ONE)
    folder = open_run(tmp_path / "a", OTHER, overwrite=True)
    folder.begin("{}")
    folder.lock.release()  # as if killed here
    assert open_run(tmp_path / "a", ONE).state is State.COMPLETE
    assert open_run(tmp_path / "a", OTHER, overwrite=True).state is State.PARTIAL
    complete(tmp_path / "a", OTHER, overwrite=True)
    assert open_run(tmp_path / "a", OTHER).state is State.COMPLETE
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_kill_between_completion_and_replacement_is_repaired_by_the_same_command(tmp_path, monkeypatch):
    complete(tmp_path / "a", ONE)

    def killed(final):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("antibody_llm.store.folder.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            complete(tmp_path / "a", OTHER, overwrite=True)
    assert open_run(tmp_path / "a", ONE).state is State.COMPLETE
    assert open_run(tmp_path / "a", OTHER, overwrite=True).state is State.COMPLETE
    assert open_run(tmp_path / "a", OTHER).state is State.COMPLETE


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
    with pytest.raises(OutputError, match="a file is there"):
        open_run(tmp_path / "a", ONE)


FOREIGN = {
    "notes.txt": "years of work",
    "adapter/notes.txt": "on the weights",
    "adapter/again/result.json": "a run nested in it",
    "tuned/config.yaml": "{verb: finetune}",
    "tuned/adapter/weights": "of a nested run",
    ".hidden": "?",
}


BESIDE = {name: text for name, text in FOREIGN.items() if not name.startswith("adapter/")}


def add(files: dict[str, str], folder: Path) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_overwriting_replaces_what_the_old_run_made_and_nothing_else(tmp_path):
    complete(tmp_path / "alone", OTHER)
    complete(tmp_path / "a", ONE)
    add(FOREIGN, tmp_path / "a")
    complete(tmp_path / "a", OTHER, overwrite=True)
    assert tree(tmp_path / "a") == tree(tmp_path / "alone") | FOREIGN
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "alone"]


def test_a_partial_run_is_replaced_with_its_checkpoints_and_nothing_else(tmp_path):
    complete(tmp_path / "alone", OTHER)
    started = open_run(tmp_path / "a", ONE)
    started.begin("{}")
    (tmp_path / "a" / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    (tmp_path / "a" / "checkpoints" / "checkpoint-3" / "state").write_text("?")
    started.lock.release()
    add(BESIDE, tmp_path / "a")
    complete(tmp_path / "a", OTHER, overwrite=True)
    assert tree(tmp_path / "a") == tree(tmp_path / "alone") | BESIDE


def test_what_is_no_run_stays_beside_the_run_that_is_put_there(tmp_path):
    complete(tmp_path / "alone", ONE)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match=r"something else than a run \(thesis.txt\).*leaves that in place"):
        open_run(tmp_path / "a", ONE)
    complete(tmp_path / "a", ONE, overwrite=True)
    assert tree(tmp_path / "a") == tree(tmp_path / "alone") | {"thesis.txt": "years of work"}


@pytest.mark.parametrize("name", ["metrics.jsonl", "adapter/weights", "report.html", "model"])
def test_what_bears_the_name_of_something_that_a_run_makes_is_refused_and_not_replaced(tmp_path, name):
    (tmp_path / "a" / name).parent.mkdir(parents=True)
    (tmp_path / "a" / name).write_text("mine")
    with pytest.raises(OutputError, match=f"{name}: is in the way, and no run of ours made it"):
        open_run(tmp_path / "a", ONE, overwrite=True)
    assert tree(tmp_path / "a") == {name: "mine"}


def test_a_list_of_files_that_leads_out_of_the_folder_removes_nothing_there(tmp_path):
    complete(tmp_path / "a", ONE)
    (tmp_path / "mine").write_text("?")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "of-1.0").write_text("?")
    shutil.rmtree(tmp_path / "a" / "adapter")
    (tmp_path / "a" / "adapter").symlink_to(tmp_path / "elsewhere")
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    result["files"] += ["../mine", "adapter/../../mine", str(tmp_path / "mine")]
    (tmp_path / "a" / "result.json").write_text(json.dumps(result))
    with pytest.raises(OutputError, match="adapter: is in the way"):
        open_run(tmp_path / "a", OTHER, overwrite=True)
    (tmp_path / "a" / "adapter").unlink()
    complete(tmp_path / "a", OTHER, overwrite=True)
    assert (tmp_path / "mine").exists()
    assert (tmp_path / "elsewhere" / "of-1.0").exists()


@pytest.mark.parametrize("how", ["is", "holds", "lies inside"])
def test_an_output_that_is_holds_or_lies_inside_an_input_is_refused(tmp_path, how):
    given = tmp_path / "b" / "adapter"
    given.mkdir(parents=True)
    output = {"is": given, "holds": tmp_path / "b", "lies inside": given / "tuned"}[how]
    with pytest.raises(OutputError, match=f"the output {how} an input of the run, .*adapter"):
        open_run(output, ONE, overwrite=True, inputs=("lab", None, [{}], given))
    assert open_run(tmp_path / "b" / "tuned", ONE, inputs=("lab", "somebody/model", given)).state is State.NEW


def test_a_symlinked_output_stays_a_symlink_to_its_folder(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "disk")
    complete(tmp_path / "a", ONE)
    complete(tmp_path / "a", OTHER, overwrite=True)
    assert (tmp_path / "a").is_symlink()
    assert (tmp_path / "disk" / "metrics.jsonl").read_text() == str(OTHER)
    assert not (tmp_path / "disk" / "adapter" / "of-1.0").exists()


@pytest.mark.parametrize("name", ["", " ", "~nosuchuser/a", "a\0b", "x" * 300])
def test_a_name_that_no_folder_can_have_is_refused(name):
    with pytest.raises(AntibodyError, match="^output is"):
        open_run(name, ONE, overwrite=True)


def killed_at(num: int, act) -> bool:
    """Whether ``act`` ends before the ``num``-th change to the disk, at which the process that does it dies at once."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event, arguments):
            nonlocal seen
            if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate") or (
                event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            ):
                seen += 1
                if seen == num:
                    os._exit(9)

        sys.addaudithook(hook)
        try:
            act()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("old", ["complete", "partial", "foreign"])
def test_a_kill_at_any_write_of_an_overwriting_run_is_repaired_by_the_same_command(tmp_path, old):
    complete(tmp_path / "alone", OTHER)
    foreign = FOREIGN if old == "complete" else BESIDE

    def prepared(output):
        if old == "complete":
            complete(output, ONE)
        elif old == "partial":
            folder = open_run(output, ONE)
            folder.begin("{}")
            folder.lock.release()
        add(foreign, output)

    wanted, num, ended = tree(tmp_path / "alone") | foreign, 0, False
    while not ended:
        num += 1
        output = tmp_path / f"a{num}"
        output.mkdir()
        prepared(output)
        ended = killed_at(num, lambda output=output: complete(output, OTHER, overwrite=True))
        assert tree(output).items() >= foreign.items(), num
        if old == "complete" and not ended and (output / "result.json").exists():
            replaced = (output / ".replacing").exists() or (output / "config.yaml").read_text().endswith("2.0\n")
            whole = OTHER if replaced else ONE
            assert open_run(output, whole).state is State.COMPLETE, num
        complete(output, OTHER, overwrite=True)
        assert tree(output) == wanted, num
    assert num > 20


def test_a_kill_at_any_write_of_a_run_is_repaired_by_the_same_command(tmp_path):
    complete(tmp_path / "alone", ONE)
    num, ended = 0, False
    while not ended:
        num += 1
        ended = killed_at(num, lambda: complete(tmp_path / "a", ONE))
        complete(tmp_path / "a", ONE)
        assert tree(tmp_path / "a") == tree(tmp_path / "alone"), num
        shutil.rmtree(tmp_path / "a")
    assert num > 10


def test_a_run_that_cannot_take_its_place_stays_complete_beside_and_the_old_one_where_it_was(tmp_path, monkeypatch):
    complete(tmp_path / "a", ONE)
    before = tree(tmp_path / "a")
    real = Path.rename

    def rename(self, target):
        if self.name == module.OVERWRITE:
            raise OSError(16, "Device or resource busy")
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(OutputError, match=r"busy\)\. The new run is complete, in .*/a/\.overwrite"):
            complete(tmp_path / "a", OTHER, overwrite=True)
    assert tree(tmp_path / "a").items() >= before.items()
    complete(tmp_path / "a", OTHER, overwrite=True)
    assert (tmp_path / "a" / "metrics.jsonl").read_text() == str(OTHER)
    assert not (tmp_path / "a" / module.OVERWRITE).exists()
