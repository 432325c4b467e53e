"""``/uploads`` through the real client."""

import hashlib

import openai
import pytest

from antibody_llm.server.housekeeping import housekeep
from tests.server.running import chat_rows, upload


def begin(client, num_bytes, **more):
    return client.uploads.create(
        bytes=num_bytes, filename="rows.jsonl", mime_type="text/jsonl", purpose="fine-tune", **more
    )


def test_a_chunked_upload_becomes_a_checked_file(client):
    content = chat_rows(20)
    made = client.uploads.upload_file_chunked(
        file=content,
        filename="rows.jsonl",
        bytes=len(content),
        mime_type="text/jsonl",
        purpose="fine-tune",
        part_size=100,
        md5=hashlib.md5(content).hexdigest(),
    )
    assert made.status == "completed"
    assert made.file.status == "processed"
    assert client.files.content(made.file.id).read() == content


def test_parts_are_joined_in_the_order_in_which_they_are_named(client):
    content = chat_rows(12)
    row = begin(client, len(content))
    second = client.uploads.parts.create(row.id, data=content[50:])
    first = client.uploads.parts.create(row.id, data=content[:50])
    assert first.upload_id == row.id
    done = client.uploads.complete(row.id, part_ids=[first.id, second.id])
    assert client.files.content(done.file.id).read() == content
    again = client.uploads.complete(row.id, part_ids=[first.id, second.id])
    assert again.file.id == done.file.id


def test_what_does_not_fit_together_is_refused_and_can_be_corrected(client):
    row = begin(client, 4)
    first, second = (client.uploads.parts.create(row.id, data=each) for each in (b"ab", b"cd"))
    wrong = [
        ([first.id], {}, "bytes_mismatch"),
        ([first.id, first.id], {}, "invalid_value"),
        ([first.id, "part_x"], {}, "part_not_found"),
        ([second.id, first.id], {"md5": hashlib.md5(b"abcd").hexdigest()}, "md5_mismatch"),
    ]
    for part_ids, more, code in wrong:
        with pytest.raises(openai.BadRequestError) as refused:
            client.uploads.complete(row.id, part_ids=part_ids, **more)
        assert refused.value.code == code
    assert client.uploads.complete(row.id, part_ids=[first.id, second.id]).status == "completed"


def test_a_cancelled_upload_takes_no_more_parts_and_its_parts_go(fresh):
    client = fresh.client()
    row = begin(client, 4)
    client.uploads.parts.create(row.id, data=b"ab")
    assert client.uploads.cancel(row.id).status == "cancelled"
    assert client.uploads.cancel(row.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="is cancelled"):
        client.uploads.parts.create(row.id, data=b"cd")
    housekeep(fresh.context)
    assert [path for path in (fresh.context.settings.home / "blobs").rglob("*") if path.is_file()] == []


def test_an_upload_lives_for_an_hour(fresh):
    client = fresh.client()
    row = begin(client, 4)
    part = client.uploads.parts.create(row.id, data=b"abcd")
    fresh.offset = 3601
    with pytest.raises(openai.BadRequestError, match="is expired"):
        client.uploads.complete(row.id, part_ids=[part.id])
    housekeep(fresh.context)
    with pytest.raises(openai.BadRequestError, match="is expired"):
        client.uploads.cancel(row.id)


def test_more_bytes_than_announced_are_refused(tmp_path):
    from antibody_llm.server.settings import Limits
    from tests.server.running import Server

    with Server(tmp_path, limits=Limits(part_bytes=10)) as server:
        client = server.client()
        row = begin(client, 4)
        with pytest.raises(openai.APIStatusError) as refused:
            client.uploads.parts.create(row.id, data=b"x" * 11)
        assert refused.value.status_code == 413
        client.uploads.parts.create(row.id, data=b"x" * 10)
        with pytest.raises(openai.BadRequestError, match="announced"):
            client.uploads.parts.create(row.id, data=b"x" * 10)


def test_the_announced_length_has_a_limit(client):
    with pytest.raises(openai.BadRequestError) as refused:
        begin(client, 2**40)
    assert refused.value.param == "bytes"


def test_a_file_that_was_deleted_leaves_the_disk_once_no_job_needs_it(fresh):
    client = fresh.client()
    file = upload(client)
    job = client.fine_tuning.jobs.create(model="lab", training_file=file.id)
    client.files.delete(file.id)
    housekeep(fresh.context)
    row = fresh.queue.file(file.id)
    assert fresh.context.blobs.exists(row.blob)
    client.fine_tuning.jobs.cancel(job.id)
    housekeep(fresh.context)
    assert not fresh.context.blobs.exists(row.blob)
