import errno
import os
import threading
import time
from pathlib import Path

import pytest

from antibody_llm import paths
from antibody_llm.cli.options import as_flag
from antibody_llm.errors import AntibodyError, ConfigError, DataError, OutputError
from antibody_llm.mentions import setting
from antibody_llm.paths import as_file, checked_output, checked_path

WRONG = {
    "": "is empty",
    "  ": "is empty",
    "a\0b": "NUL",
    "~nosuchuser/x": "no such user",
    "x" * 300: "File name too long",
    "d/" * 3000: "File name too long",
    "loop": "symbolic links",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: repr(text[:20]))
def test_a_path_that_cannot_be_one_is_refused_by_the_setting_s_name(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    for check in (checked_path, checked_output):
        with pytest.raises(ConfigError, match=WRONG[text]) as caught:
            check(text, setting("output"))
        assert str(caught.value).startswith("output is")
        assert caught.value.spelled(as_flag).startswith("--output is")
        assert caught.value.field == "output"
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize("text", ["owner/name", "none/of/these", "lab", "."])
def test_what_may_be_made_or_be_somewhere_else_is_left_to_the_reader(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    assert checked_path(text, setting("model")) == Path(text)


def test_home_is_written_out(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checked_path("~/a", setting("data")) == tmp_path / "a"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_place_that_the_system_does_not_show_is_refused(tmp_path, monkeypatch, number):
    def refused(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(ConfigError, match=os.strerror(number)):
        checked_path(tmp_path, setting("model"))


OUTPUTS = {"/": "no name of its own", "a/..": "no name of its own", "file/below": "file is not a folder"}


@pytest.mark.parametrize("text", [*OUTPUTS, "y" * 220])
def test_an_output_where_nothing_can_be_made_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(AntibodyError, match=OUTPUTS.get(text, "at most 200 bytes")):
        checked_output(text)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_output_that_is_a_link_to_nothing_is_refused_as_such(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(OutputError, match="a link to a folder that is not there. Make that folder first"):
        checked_output(tmp_path / "link")
    assert checked_output(tmp_path / "link", folder=False) == tmp_path / "link"


def test_an_output_below_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *args, **kwargs: False)
    with pytest.raises(OutputError, match="cannot be written to"):
        checked_output(tmp_path / "a" / "b")


def test_a_pipe_is_read_to_its_end_and_can_then_be_read_twice(tmp_path):
    os.mkfifo(tmp_path / "rows.txt")
    content = b"line\n" * 50_000  # more than a pipe holds
    writer = threading.Thread(target=(tmp_path / "rows.txt").write_bytes, args=(content,))
    writer.start()
    with as_file(tmp_path / "rows.txt") as file:
        assert (file.read_bytes(), file.read_bytes(), file.name) == (content, content, "rows.txt")
    writer.join()
    assert not file.exists()


def test_an_anonymous_pipe_whose_writer_is_gone_already_is_read():
    reading, writing = os.pipe()
    os.write(writing, b"rows")
    os.close(writing)
    with as_file(Path(f"/dev/fd/{reading}")) as file:
        assert file.read_bytes() == b"rows"
    os.close(reading)


def test_a_pipe_that_nobody_writes_into_is_refused_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PATIENCE", 0.1)
    os.mkfifo(tmp_path / "pipe")
    started = time.monotonic()
    with pytest.raises(DataError, match=r"pipe: a pipe, and nobody wrote into it"), as_file(tmp_path / "pipe"):
        pass
    assert time.monotonic() - started < 5


def test_a_pipe_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "MAX_PIPED", 1000)
    reading, writing = os.pipe()
    os.write(writing, b"x" * 2000)
    os.close(writing)
    with pytest.raises(DataError, match="more than 1000 bytes"), as_file(Path(f"/dev/fd/{reading}")):
        pass
    os.close(reading)


def test_a_device_is_refused():
    with pytest.raises(AntibodyError, match="a device or a socket"), as_file(Path("/dev/zero")):
        pass


def test_a_file_and_what_is_not_there_are_left_as_they_are(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with as_file(path) as file:
            assert file == path
