"""Blobs: whole or absent, in a folder and in another file system."""

import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from antibody_llm.errors import ConfigError
from antibody_llm.server.blobs import Blobs


@pytest.fixture(scope="module")
def s3():
    """Options for a bucket on a server that speaks S3."""
    try:
        import boto3
        import s3fs  # noqa: F401
        from moto.server import ThreadedMotoServer
    except ImportError as missing:
        reason = f"no server that speaks S3 is installed ({missing.name}): pip install 'antibody-llm[services]'"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}; CI needs it")
        pytest.skip(reason)
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    access = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
    url = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=url, **access).create_bucket(Bucket="bucket")
    yield {"key": "a", "secret": "b", "client_kwargs": {"endpoint_url": url, "region_name": "us-east-1"}}
    server.stop()


@pytest.fixture(params=["folder", "memory", "s3"])
def blobs(request, tmp_path):
    if request.param == "s3":
        return Blobs(f"s3://bucket/{tmp_path.name}", **request.getfixturevalue("s3"))
    return Blobs(str(tmp_path / "b") if request.param == "folder" else f"memory://{tmp_path.name}")


def put(blobs, key, content):
    with blobs.writing(key) as file:
        file.write(content)


def test_a_blob_is_what_was_written(blobs):
    key = blobs.new_key("files")
    put(blobs, key, b"abc" * 10**7)  # several parts of a multipart upload
    assert b"".join(blobs.chunks(key)) == b"abc" * 10**7
    with blobs.local(key) as path:
        assert path.stat().st_size == 3 * 10**7
    blobs.delete(key)
    assert not blobs.exists(key)
    blobs.delete(key)


def test_a_blob_whose_writing_failed_is_not_there(blobs):
    key = blobs.new_key("files")
    with suppress(ZeroDivisionError), blobs.writing(key) as file:
        file.write(b"abc" * 10**7)
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
    assert blobs.older("models", time.time() - 60) == set()
    assert blobs.older("models", time.time() + 60) == {prefix}
    assert blobs.older("parts", time.time() + 60) == set()
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
