"""Blobs: whole or absent, in a folder and in another file system."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from antibody_llm.errors import ConfigError
from antibody_llm.server.blobs import Blobs


@pytest.fixture(params=["folder", "memory"])
def blobs(request, tmp_path):
    return Blobs(str(tmp_path / "b") if request.param == "folder" else f"memory://{tmp_path.name}")


def put(blobs, key, content):
    with blobs.writing(key) as file:
        file.write(content)


def test_a_blob_is_what_was_written(blobs):
    key = blobs.new_key("files")
    put(blobs, key, b"abc" * 10**6)
    assert b"".join(blobs.chunks(key)) == b"abc" * 10**6
    with blobs.local(key) as path:
        assert path.stat().st_size == 3 * 10**6
    blobs.delete(key)
    assert not blobs.exists(key)
    blobs.delete(key)


def test_a_blob_whose_writing_failed_is_not_there(blobs):
    key = blobs.new_key("files")
    with suppress(ZeroDivisionError), blobs.writing(key) as file:
        file.write(b"abc")
        raise ZeroDivisionError
    assert not blobs.exists(key)


def test_a_blob_is_not_seen_before_it_is_whole(tmp_path):
    blobs = Blobs(str(tmp_path))
    key = blobs.new_key("files")
    with blobs.writing(key) as file:
        file.write(b"a")
        assert not blobs.exists(key)
    assert blobs.exists(key)


def test_a_folder_comes_back_as_it_was(blobs, tmp_path):
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "a.json").write_text("{}")
    (source / "inner" / "b.bin").write_bytes(b"\0\1")
    (source / "link").symlink_to("/etc/passwd")
    prefix = blobs.store_folder(source)
    made = blobs.fetch_folder(prefix, tmp_path / "cache" / "copy")
    assert sorted(path.relative_to(made).as_posix() for path in made.rglob("*")) == ["a.json", "inner", "inner/b.bin"]
    assert (made / "inner" / "b.bin").read_bytes() == b"\0\1"
    assert blobs.fetch_folder(prefix, made) == made
    blobs.delete(prefix)
    with pytest.raises(FileNotFoundError):
        blobs.fetch_folder(prefix, tmp_path / "cache" / "other")


def test_keys_stay_below_the_root(tmp_path):
    with pytest.raises(AssertionError):
        Blobs(str(tmp_path)).open("files/../../x")


def test_a_file_system_that_is_not_there_says_so():
    with pytest.raises(ConfigError, match="blobs"):
        Blobs("nosuchfs://x")


def test_blobs_that_no_row_names_go_after_a_day(fresh):
    from antibody_llm.server.housekeeping import housekeep
    from tests.server.running import upload

    blobs = fresh.context.blobs
    kept = fresh.queue.file(upload(fresh.client()).id).blob
    old, new, folder = blobs.new_key("files"), blobs.new_key("files"), blobs.new_key("models") + "/inner/a"
    for key in (old, new, folder):
        put(blobs, key, b"x")
    half = Path(blobs.root) / "parts" / "ab" / ".abc.tmp"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"x")
    for path in Path(blobs.root).rglob("*"):
        if path.is_file() and not str(path).endswith(new):
            os.utime(path, (1, 1))
    housekeep(fresh.context)
    left = {str(path.relative_to(blobs.root)) for path in Path(blobs.root).rglob("*") if path.is_file()}
    assert left == {kept, new}
    put(blobs, old, b"x")
    os.utime(Path(blobs.root) / old, (1, 1))
    housekeep(fresh.context)
    assert blobs.exists(old)
