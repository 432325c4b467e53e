"""What surrounds every request: ids, limits, the API's own errors for the framework's, and the unexpected."""

import json
import logging

import openai
import pytest

from tests.server.running import chat_rows, upload

JOBS = "/v1/fine_tuning/jobs"


def error(answer, status):
    assert answer.status_code == status
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]
    return body["error"]


def test_every_answer_has_an_id_that_the_client_knows(server, client):
    assert client.models.retrieve("lab")._request_id.startswith("req_")
    with pytest.raises(openai.NotFoundError) as missing:
        client.files.retrieve("file-x")
    assert missing.value.request_id.startswith("req_")
    assert server.http.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert server.http.get("/health", headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"


def test_urls_and_methods_that_do_not_exist_answer_in_the_apis_shape(server):
    assert error(server.http.get("/v1/nothing"), 404)["code"] == "unknown_url"
    answer = server.http.put("/v1/files")
    assert error(answer, 405)["code"] == "method_not_allowed"
    assert answer.headers["allow"]
    assert error(server.http.get("/v1/files/%00"), 400)["code"] == "invalid_url"
    assert error(server.http.get("/v1/files?after=%00"), 400)["code"] == "invalid_url"


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        (b"{", "application/json", "invalid_json"),
        (b"", "application/json", "missing_required_parameter"),
        (b"[]", "application/json", "invalid_value"),
        (b"null", "application/json", "invalid_value"),
        (b"\xff\xfe", "application/json", "invalid_json"),
        (b"[" * 100_000, "application/json", "invalid_request"),
        (b'{"model": "lab", "metadata": ' + b'{"a":' * 200 + b"1" + b"}" * 201, "application/json", "invalid_value"),
        (b'{"model": "lab", "training_file": "f", "seed": NaN}', "application/json", "invalid_value"),
        (b"model=lab", "application/x-www-form-urlencoded", "invalid_value"),
        (b"{}", "text/plain", "invalid_value"),
    ],
    ids=range(10),
)
def test_a_body_that_cannot_be_read_is_a_400(server, body, kind, code):
    answer = server.http.post(JOBS, content=body, headers={"content-type": kind})
    assert error(answer, 400)["code"] == code


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_long_is_a_413(server, announced):
    body = b'{"model": "' + b"x" * 9_000_000 + b'"}'
    content = body if announced else iter([body])
    answer = server.http.post(JOBS, content=content, headers={"content-type": "application/json"})
    assert error(answer, 413)["code"] == "too_large"


def test_what_nobody_expected_is_a_500_with_the_id_and_without_the_text(fresh, monkeypatch, caplog):
    text = "".join(("sec", "ret"))

    def broken(*_):
        raise RuntimeError(f"{text}\n{text}")

    monkeypatch.setattr(fresh.context.database, "read", broken)
    with caplog.at_level(logging.ERROR, "antibody.server"):
        answer = fresh.http.get("/v1/files", headers={"x-request-id": "r1"})
    told = error(answer, 500)
    assert told["type"] == "server_error"
    assert "r1" in told["message"]
    assert "secret" not in answer.text
    assert "secret" not in caplog.text
    assert "broken" in caplog.text


def test_the_log_has_a_line_for_each_request_without_bodies_or_keys(server, client, caplog):
    with caplog.at_level(logging.INFO, "antibody.server"):
        upload(client, chat_rows(word="topsecret"), name="topsecret.jsonl")
        client.files.list(purpose="topsecret")
    lines = [json.loads(record.message) for record in caplog.records if record.name == "antibody.server"]
    assert [line["status"] for line in lines] == [200, 200]
    assert lines[0]["project"].startswith("proj_")
    assert "topsecret" not in caplog.text
    assert server.key not in caplog.text


def test_metrics_count_requests_and_jobs_by_state(fresh):
    client = fresh.client()
    client.fine_tuning.jobs.create(model="lab", training_file=upload(client).id)
    text = fresh.http.get("/metrics").text
    assert 'antibody_jobs{status="validating_files"} 1.0' in text
    assert "antibody_jobs_waiting 1.0" in text
    assert 'antibody_requests_total{method="POST"' in text


def test_a_server_that_is_about_to_end_or_has_no_database_is_not_ready(fresh, monkeypatch):
    assert fresh.http.get("/ready").status_code == 200
    monkeypatch.setattr(fresh.context.database, "reachable", lambda: False)
    assert fresh.http.get("/ready").status_code == 503
    assert fresh.http.get("/health").status_code == 200
    monkeypatch.undo()
    fresh.context.stopping = True
    assert fresh.http.get("/ready").status_code == 503


def test_an_error_that_a_user_can_fix_names_its_field_as_param(fresh, monkeypatch):
    from antibody_llm.errors import ConfigError
    from antibody_llm.mentions import setting
    from antibody_llm.server.routes import models

    def refuse(*_):
        raise ConfigError(f"Give {setting('options.tau', '0.3')}.")

    monkeypatch.setattr(models, "usable", refuse)
    told = error(fresh.http.get("/v1/models/lab"), 400)
    assert told["param"] == "options.tau"
    assert "tau" in told["message"]


def test_a_body_that_pauses_is_given_up_so_that_the_client_tries_again(tmp_path):
    import asyncio

    from antibody_llm.server.settings import Limits
    from tests.server.running import Server

    async def ask(server, path, kind):
        sent, begun = [], False

        async def receive():
            nonlocal begun
            if begun:
                await asyncio.sleep(30)
            begun = True
            return {"type": "http.request", "body": b"--x\r\n", "more_body": True}

        async def send(message):
            sent.append(message)

        headers = [(b"authorization", f"Bearer {server.key}".encode()), (b"content-type", kind)]
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
        await server.app(scope | {"headers": headers, "http_version": "1.1", "scheme": "http"}, receive, send)
        return sent[0]["status"], json.loads(sent[1]["body"])["error"]["code"]

    with Server(tmp_path, limits=Limits(idle_seconds=1)) as server:
        for path, kind in (("/v1/files", b"multipart/form-data; boundary=x"), (JOBS, b"application/json")):
            assert asyncio.run(ask(server, path, kind)) == (408, "request_timeout")
        assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []


def test_a_database_that_is_away_is_a_503_that_the_client_tries_again(fresh, monkeypatch):
    from sqlalchemy.exc import OperationalError

    def away(*_):
        raise OperationalError("SELECT 1", {}, Exception("locked"))

    monkeypatch.setattr(fresh.context.database, "read", away)
    answer = fresh.http.get("/v1/files")
    assert error(answer, 503)["code"] == "database_unavailable"
    assert answer.headers["retry-after"] == "2"
