import json
import os
import re
import socket
import time

import pytest

from antibody_llm.errors import OutputError
from antibody_llm.store.folder import State, open_run
from antibody_llm.store.lock import FolderLock

CONFIG = {"verb": "finetune"}


def test_the_second_process_is_told_who_holds_the_folder_since_when_and_how_to_go_on(tmp_path):
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        open_run(tmp_path / "a", CONFIG).begin("{}")
        os.write(ready[1], b"x")
        os.read(go[0], 1)  # until it is killed
        os._exit(0)
    os.read(ready[0], 1)
    for overwrite in (False, True):
        with pytest.raises(OutputError) as refused:
            open_run(tmp_path / "a", CONFIG, overwrite=overwrite)
        assert f"process {child} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d')}" in str(refused.value)
        assert "run the same command again" in str(refused.value)
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert (tmp_path / "a" / ".lock").exists()  # what a killed holder leaves is taken over
    folder = open_run(tmp_path / "a", CONFIG)
    assert folder.state is State.PARTIAL
    folder.begin("{}")
    assert json.loads((tmp_path / "a" / ".lock").read_text())["pid"] == os.getpid()
    folder.abandon()
    assert not (tmp_path / "a" / ".lock").exists()


def test_of_two_runs_that_found_the_same_new_folder_one_is_refused(tmp_path):
    first, second = open_run(tmp_path / "a", CONFIG), open_run(tmp_path / "a", CONFIG | {"seed": 1})
    first.begin("{}")
    with pytest.raises(OutputError, match="another process is writing to it"):
        second.begin("{}")
    first.lock.release()
    with pytest.raises(OutputError, match="seed is None there, 1 here"):
        second.begin("{}")
    again = open_run(tmp_path / "a", CONFIG)
    again.begin("{}")
    with pytest.raises(OutputError, match=re.escape(f"process {os.getpid()}")):
        again.lock.__class__(tmp_path / "a").acquire()
    again.abandon()


def test_of_two_overwriting_runs_the_second_is_refused_even_if_both_looked_before_either_began(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("?")
    first, second = (open_run(tmp_path / "a", CONFIG | {"seed": seed}, overwrite=True) for seed in (1, 2))
    first.begin("{}")
    with pytest.raises(OutputError, match="another process is writing to it"):
        second.begin("{}")
    assert "seed: 1" in (tmp_path / "a" / ".overwrite" / "config.yaml").read_text()
    second.abandon()  # takes nothing of the first
    assert (tmp_path / "a" / ".overwrite" / "config.yaml").exists()
    first.abandon()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["notes.txt"]


def test_a_file_system_without_locks_is_written_to_with_a_warning(tmp_path, monkeypatch, caplog):
    def none(descriptor, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", none)
    lock = FolderLock(tmp_path / "a")
    lock.refuse_if_held()
    lock.acquire()
    assert "cannot be locked here (Function not implemented)" in caplog.text
    lock.release()


def test_a_holder_that_does_not_say_who_it_is_holds_all_the_same(tmp_path):
    lock = FolderLock(tmp_path)
    lock.acquire()
    lock.file.write_text("")
    with pytest.raises(OutputError, match="which one is not known"):
        FolderLock(tmp_path).refuse_if_held()
    lock.release()
