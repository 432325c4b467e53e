import hashlib
import os

import pytest

from antibody_llm.store import digest


@pytest.fixture
def reads(tmp_path, monkeypatch):
    """The files that are really read; every file counts as large."""
    monkeypatch.setenv("ANTIBODY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digest, "LARGE", 1)
    real, read = digest._read, []
    monkeypatch.setattr(digest, "_read", lambda file: read.append(file.name) or real(file))
    return read


def test_a_large_file_is_read_once_until_it_changes_even_behind_its_own_time(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(digest, "SETTLED", 0.0)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"abc")
    status = file.stat()
    for _ in range(3):
        assert digest.file_digest(file) == hashlib.sha256(b"abc").hexdigest()
    assert len(reads) == 1
    file.write_bytes(b"abd")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digest.file_digest(file) == hashlib.sha256(b"abd").hexdigest()
    assert len(reads) == 2


def test_a_file_that_has_just_been_written_is_not_remembered(tmp_path, reads):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"abc")
    digest.file_digest(file)
    digest.file_digest(file)
    assert len(reads) == 2


def test_a_cache_that_cannot_be_used_changes_nothing(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(digest, "SETTLED", 0.0)
    (tmp_path / "cache").write_text("a file")
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"abc")
    assert digest.file_digest(file) == digest.file_digest(file) == hashlib.sha256(b"abc").hexdigest()
