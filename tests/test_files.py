import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from antibody_llm.errors import OutputError
from antibody_llm.files import disk_errors, from_the_disk, held, is_held, whole, write_text


def test_a_file_that_does_not_fit_leaves_the_old_one(tmp_path, monkeypatch):
    write_text(tmp_path / "f", "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match=r"f: cannot be written \(No space left on device\)"):
        write_text(tmp_path / "f", "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("f", "old")]


def test_whatever_goes_wrong_while_writing_nothing_of_it_stays(tmp_path):
    def stopped():
        with whole(tmp_path / "f") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def full_disk(tmp_path):
    """A real one, of 64 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(bytes(100_000)),
        lambda path: torch.save({"w": torch.zeros(100_000)}, path),
        lambda path: save_file({"w": torch.zeros(100_000)}, path),
    ],
    ids=["python", "torch", "safetensors"],
)
def test_every_writer_that_finds_the_disk_full_becomes_one_kind_of_error(full_disk, write):
    with pytest.raises(OutputError, match="cannot be written"), disk_errors(full_disk):
        write(full_disk / "f")


def test_an_error_of_our_own_is_not_blamed_on_the_disk():
    assert not any(from_the_disk(error) for error in (ValueError("?"), RuntimeError("shapes differ"), KeyError("a")))
    with pytest.raises(RuntimeError, match="shapes"), disk_errors(Path("f")):
        raise RuntimeError("shapes differ")


def test_a_folder_is_held_by_a_living_process_alone(tmp_path):
    assert not is_held(tmp_path)
    with held(tmp_path):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
    child = os.fork()
    if child == 0:
        held(tmp_path).__enter__()
        os._exit(9)
    os.waitpid(child, 0)
    assert not is_held(tmp_path)


def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OutputError, match="pipe: not a file"):
        write_text(pipe, "text")
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
