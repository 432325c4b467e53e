"""``/files`` through the real client, and bodies that it would never send."""

import json

import openai
import pytest

from tests.server.running import chat_rows, upload

B = "XYZ"


def raw(server, body, *, content_type=f"multipart/form-data; boundary={B}"):
    return server.http.post("/v1/files", content=body, headers={"content-type": content_type})


def part(name, value, *, filename=None):
    head = f'Content-Disposition: form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
    return f"--{B}\r\n{head}\r\n\r\n".encode() + value + b"\r\n"


END = f"--{B}--\r\n".encode()


def test_a_file_comes_back_as_it_was_sent(client):
    content = chat_rows()
    file = upload(client, content)
    assert file.status == "processed"
    assert file.bytes == len(content)
    assert client.files.retrieve(file.id).filename == "rows.jsonl"
    assert client.files.content(file.id).read() == content


def test_faults_are_named_by_line_and_field_with_how_to_fix_them(client):
    rows = chat_rows(3) + b'{"messages": [{"role": "usr", "content": "x"}]}\n{"a": 1,}\n'
    file = upload(client, rows)
    assert file.status == "error"
    first, second = file.validation["faults"]
    assert (first["line"], first["field"]) == (4, "messages[0].role")
    assert "'usr'" in first["message"]
    assert "Roles: " in first["message"]
    assert (second["line"], second["kind"]) == (5, "comma before a bracket")
    assert file.status_details.startswith("2 faults in 5 rows.\nline 4, messages[0].role: ")


def test_of_many_faults_the_first_hundred_are_shown_and_all_are_counted(client):
    file = upload(client, b"{}\n" * 250)
    assert file.validation["num_faults"] == 250
    assert len(file.validation["faults"]) == 100
    assert "The first 100:" in file.status_details
    (listed,) = [each for each in client.files.list() if each.id == file.id]
    assert (listed.validation["num_faults"], listed.validation["faults"]) == (250, [])
    assert listed.status_details == "250 faults in 250 rows. The first 100:"


def test_a_file_that_is_no_text_says_what_it_is(client):
    file = upload(client, b"PK\x03\x04" + b"\0" * 100)
    assert file.status == "error"
    assert "zip archive" in file.status_details


def test_files_for_other_ends_are_not_read(client):
    assert upload(client, b"\0\1", name="a.bin", purpose="user_data").status == "processed"


def test_a_list_is_paged_by_the_last_id(fresh):
    client = fresh.client()
    made = [upload(client, name=f"{i}.jsonl").id for i in range(5)]
    assert [file.id for file in client.files.list(limit=2)] == made[::-1]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == made
    page = client.files.list(limit=2)
    assert (page.has_more, page.first_id, page.last_id) == (True, made[4], made[3])
    assert client.files.list(purpose="batch").data == []
    with pytest.raises(openai.BadRequestError, match="no item of this list"):
        client.files.list(after="file-unknown")


def test_a_deleted_file_is_gone(client):
    file = upload(client)
    assert client.files.delete(file.id).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(file.id)


def test_a_file_expires_when_it_was_to(fresh):
    client = fresh.client()
    file = client.files.create(
        file=("a.jsonl", chat_rows()), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at == file.created_at + 3600
    fresh.offset = 3601
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_the_name_of_an_upload_is_never_a_path(server, client):
    name = "../../etc/passwd"
    file = upload(client, name=name)
    answer = client.files.with_raw_response.content(file.id)
    assert name not in answer.headers["content-disposition"]
    stored = [str(path) for path in server.context.settings.home.rglob("*")]
    assert not any("passwd" in path for path in stored)


def test_parts_of_a_form_may_come_in_any_order(server):
    answer = raw(server, part("file", chat_rows(), filename="r.jsonl") + part("purpose", b"fine-tune") + END)
    assert answer.status_code == 200
    assert answer.json()["status"] == "processed"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (part("purpose", b"fine-tune") + END, "missing_required_parameter", "file"),
        (part("file", b"{}", filename="r") + END, "invalid_purpose", "purpose"),
        (part("file", b"{}", filename="r") + part("purpose", b"finetune") + END, "invalid_purpose", "purpose"),
        (part("file", b"{}") + part("purpose", b"fine-tune") + END, "invalid_multipart", "file"),
        (
            part("file", b"{}", filename="r") + part("purpose", b"batch") + part("x", b"1") + END,
            "unknown_parameter",
            "x",
        ),
        (part("file", b"{}", filename="r") + part("purpose", b"batch"), "incomplete_body", None),
        (b"nonsense", "invalid_multipart", None),
        (b"", "incomplete_body", None),
        (part("file", b"a", filename="r") * 2 + part("purpose", b"batch") + END, "invalid_multipart", "file"),
        (part("purpose", b"x" * 100_000) + END, "invalid_multipart", None),
        (part("n" * 20_000, b"x") + END, "invalid_multipart", None),
    ],
    ids=range(11),
)
def test_a_broken_form_is_refused_and_leaves_nothing(fresh, body, code, param):
    answer = raw(fresh, body)
    assert answer.status_code == 400
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, param)
    assert [path for path in (fresh.context.settings.home / "blobs").rglob("*") if path.is_file()] == []


def test_another_content_type_is_refused_by_name(server):
    answer = raw(server, json.dumps({"purpose": "fine-tune"}).encode(), content_type="application/json")
    assert answer.status_code == 400
    assert "application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize("announced", [True, False])
def test_a_file_that_is_too_long_is_refused_and_leaves_nothing(tmp_path, announced):
    from antibody_llm.server.settings import Limits
    from tests.server.running import Server

    body = part("file", b"x" * 5_000_000, filename="r") + part("purpose", b"batch") + END
    with Server(tmp_path, limits=Limits(file_bytes=4096)) as server:
        answer = raw(server, body if announced else iter([body]))
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "file_too_large"
        assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []


def test_a_project_stores_no_more_than_its_room(tmp_path):
    from antibody_llm.server.settings import Limits
    from tests.server.running import Server

    with Server(tmp_path, limits=Limits(project_bytes=1500)) as server:
        client = server.client()
        file = upload(client, chat_rows(10))
        with pytest.raises(openai.BadRequestError, match="Delete files first") as refused:
            upload(client, chat_rows(10))
        assert refused.value.code == "exceeded_quota"
        client.files.delete(file.id)
        upload(client, chat_rows(10))


def test_uploads_of_a_key_have_a_rate(tmp_path):
    from antibody_llm.server.settings import Limits
    from tests.server.running import Server

    with Server(tmp_path, limits=Limits(uploads_per_minute=2)) as server:
        client = server.client()
        upload(client), upload(client)
        with pytest.raises(openai.RateLimitError) as refused:
            upload(client)
        assert int(refused.value.response.headers["retry-after-ms"]) > 0


def test_a_file_whose_check_was_cut_short_is_checked_later(fresh):
    from antibody_llm.server.database.tables import File
    from antibody_llm.server.housekeeping import housekeep

    client = fresh.client()
    file = upload(client)
    with fresh.context.database.write() as session:
        session.query(File).update({"status": "uploaded", "validation": None})
    housekeep(fresh.context)
    assert client.files.retrieve(file.id).status == "uploaded"
    fresh.offset = 700
    housekeep(fresh.context)
    assert client.files.retrieve(file.id).validation["num_rows"] == 12
