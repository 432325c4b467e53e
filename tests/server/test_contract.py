"""Every route of the contract, called by the unmodified client, and recorded requests of the client for Node."""

import hashlib
import json
import re

import httpx2
import pytest

from antibody_llm.server.database.tables import Notice
from antibody_llm.server.inference.backends import LocalProcess
from antibody_llm.server.routes.inference import Inference, make_router
from tests.server.running import Server, chat_rows, train, upload

TABLE = """
POST /files, GET /files, GET /files/{}, GET /files/{}/content, DELETE /files/{}
POST /uploads, POST /uploads/{}/parts, POST /uploads/{}/complete, POST /uploads/{}/cancel
POST /fine_tuning/jobs, GET /fine_tuning/jobs, GET /fine_tuning/jobs/{}
POST /fine_tuning/jobs/{}/cancel, POST /fine_tuning/jobs/{}/pause, POST /fine_tuning/jobs/{}/resume
GET /fine_tuning/jobs/{}/events, GET /fine_tuning/jobs/{}/checkpoints
GET /fine_tuning/checkpoints/{}/permissions, POST /fine_tuning/checkpoints/{}/permissions
DELETE /fine_tuning/checkpoints/{}/permissions/{}
POST /fine_tuning/alpha/graders/validate, POST /fine_tuning/alpha/graders/run
GET /models, GET /models/{}, DELETE /models/{}, POST /moderations
POST /webhook_endpoints, GET /webhook_endpoints, GET /webhook_endpoints/{}, POST /webhook_endpoints/{}
DELETE /webhook_endpoints/{}, POST /webhook_endpoints/{}/rotate_secret, POST /webhook_endpoints/{}/test
GET /webhook_event_types, GET /safety/alerts/{}, GET /safety/cases/{}
POST /chat/completions, POST /completions, POST /responses
"""
"""The table of the contract; {} is a parameter."""
ROUTES = {route.strip() for line in TABLE.strip().splitlines() for route in line.split(",")}


class Answering:
    """In the place of the process that answers for models: an answer in the shape of each request."""

    async def handle_async_request(self, request):
        path = request.url.path
        answer = {
            "/chat/completions": {"choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}]},
            "/completions": {"choices": [{"index": 0, "text": "hi"}]},
            "/responses": {"output": [{"type": "message", "content": [{"type": "output_text", "text": "hi"}]}]},
        }[path]
        return httpx2.Response(200, json={"id": "x", "object": "x", **answer})

    async def aclose(self): ...


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A server, and what it was asked: route and status."""
    home = tmp_path_factory.mktemp("contract")
    with Server(home) as server:
        inference = Inference(LocalProcess(Answering()), home / "weights")
        server.app.include_router(make_router(inference), prefix="/v1")
        asked = []
        record = server.app.middleware_stack

        async def recording(scope, receive, send):
            async def noting(message):
                if message["type"] == "http.response.start" and "route" in scope:
                    asked.append((scope["method"], scope["route"].path, message["status"]))
                await send(message)

            await record(scope, receive, noting)

        server.app.middleware_stack = recording
        yield server, asked


def files_and_uploads(client):
    file = upload(client)
    assert client.files.wait_for_processing(file.id).status == "processed"
    assert [each.id for each in client.files.list(limit=1)]
    assert client.files.content(file.id).read() == chat_rows()
    assert client.files.delete(file.id).deleted
    begun = client.uploads.create(bytes=9, filename="a.jsonl", mime_type="application/jsonl", purpose="user_data")
    part = client.uploads.parts.create(begun.id, data=b"123456789")
    md5 = hashlib.md5(b"123456789").hexdigest()
    assert client.uploads.complete(begun.id, part_ids=[part.id], md5=md5).file.bytes == 9
    begun = client.uploads.create(bytes=9, filename="a.jsonl", mime_type="application/jsonl", purpose="user_data")
    assert client.uploads.cancel(begun.id).status == "cancelled"


def jobs_and_models(server, client):
    jobs, rows = client.fine_tuning.jobs, upload(client).id
    job = jobs.create(model="lab", training_file=rows)
    assert jobs.pause(job.id).status == "paused"
    assert jobs.resume(job.id).status == "validating_files"
    train(server)
    job = jobs.retrieve(job.id)
    assert job.id in [each.id for each in jobs.list()]
    assert jobs.list_events(job.id).data
    (checkpoint, *_) = jobs.checkpoints.list(job.id).data
    permissions = client.fine_tuning.checkpoints.permissions
    project = server.http.get("/v1/operator/projects").json()["data"][0]["id"]
    (given,) = permissions.create(checkpoint.fine_tuned_model_checkpoint, project_ids=[project]).data
    assert permissions.list(checkpoint.fine_tuned_model_checkpoint).data[0].id == given.id
    assert permissions.delete(given.id, fine_tuned_model_checkpoint=checkpoint.fine_tuned_model_checkpoint).deleted
    assert jobs.cancel(jobs.create(model="lab", training_file=rows).id).status == "cancelled"
    assert client.models.retrieve(job.fine_tuned_model).id == job.fine_tuned_model
    assert job.fine_tuned_model in [each.id for each in client.models.list()]
    assert client.models.delete(job.fine_tuned_model).deleted
    jobs.create(model="lab", training_file=rows)
    train(server, status="failed", error={"code": "safety_gate_failed", "message": "no", "param": None})


def test_every_route_of_the_contract_answers_the_real_client(recorded):
    server, asked = recorded
    client = server.client()
    files_and_uploads(client)
    jobs_and_models(server, client)
    grader = {
        "type": "string_check",
        "name": "g",
        "operation": "eq",
        "input": "{{sample.output_text}}",
        "reference": "a",
    }
    assert client.fine_tuning.alpha.graders.validate(grader=grader).grader.name == "g"
    assert client.fine_tuning.alpha.graders.run(grader=grader, model_sample="a").reward == 1
    assert client.moderations.create(input="a").results
    hooks = client.webhooks
    hook = hooks.create(name="h", url="https://example.com/", event_types=["fine_tuning.job.succeeded"])
    assert hooks.list().data[0].id == hooks.retrieve(hook.id).id == hook.id
    assert hooks.update(hook.id, name="i").name == "i"
    assert hooks.rotate_secret(hook.id).signing_secret
    assert hooks.test(hook.id, event_type="fine_tuning.job.succeeded").success
    assert hooks.delete(hook.id).deleted
    assert hooks.event_types.list().data
    alert, case = notices(server)
    assert client.safety.alerts.retrieve(alert).id == alert
    assert client.safety.cases.retrieve(case).id == case
    messages = [{"role": "user", "content": "a"}]
    assert client.chat.completions.create(model="lab", messages=messages).choices[0].message.content == "hi"
    assert client.completions.create(model="lab", prompt="a").choices[0].text == "hi"
    assert client.responses.create(model="lab", input="a").output_text == "hi"
    answered = {f"{method} {in_the_table(path)}" for method, path, status in asked if status == 200}
    assert answered >= ROUTES, ROUTES - answered


def notices(server):
    """The alert of a refused model, and a case: ids."""
    with server.context.database.write() as session:
        alert = session.query(Notice).filter_by(kind="alert").first()
        case = {"entity_identifier": "e", "notice": {"type": "warning"}}
        session.add(Notice(id="ca_1", project_id=alert.project_id, kind="case", created_at=1.0, body=case))
        return alert.id, "ca_1"


def in_the_table(path):
    """A route's path as the table writes it."""
    return re.sub(r"\{[^}]*\}", "{}", path.removeprefix("/v1"))


# -- another client ----------------------------------------------------------------------------------------------------

NODE = {
    "user-agent": "OpenAI/JS 6.1.0",
    "x-stainless-lang": "js",
    "x-stainless-runtime": "node",
    "x-stainless-retry-count": "0",
    "x-stainless-timeout": "600",
    "accept": "application/json",
}
EMPTY = NODE | {"content-length": "0"}
JSON = NODE | {"content-type": "application/json"}


def form(fields, file, name="file", filename="rows.jsonl"):
    """Body and headers that Node's FormData makes through undici."""
    boundary = "----formdata-undici-084471295301"
    text = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'
        for key, value in fields.items()
    )
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n'
    body = (
        f"{text}{head}Content-Type: application/octet-stream\r\n\r\n".encode() + file + f"\r\n--{boundary}--".encode()
    )
    return {"content": body, "headers": NODE | {"content-type": f"multipart/form-data; boundary={boundary}"}}


def test_the_file_calls_of_the_client_for_node_are_answered(server):
    http = server.http
    life = {"purpose": "fine-tune", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = http.post("/v1/files", **form(life, chat_rows())).json()
    assert file["expires_at"] == file["created_at"] + 3600
    unnamed = http.post(
        "/v1/files", **form({"purpose": "fine-tune"}, chat_rows(), filename="r\u00f6ws %22x%22.jsonl")
    ).json()
    assert unnamed["status"] == "processed"
    listed = http.get("/v1/files?limit=1&order=asc&purpose=fine-tune", headers=NODE).json()
    assert listed["data"][0]["id"]
    there = http.get(f"/v1/files/{file['id']}/content", headers=NODE | {"accept": "application/binary"})
    assert there.content == chat_rows()
    assert http.delete(f"/v1/files/{file['id']}", headers=NODE).json()["deleted"]
    body = {"bytes": 4, "filename": "a.bin", "mime_type": "application/octet-stream", "purpose": "user_data"}
    begun = http.post("/v1/uploads", content=json.dumps(body), headers=JSON).json()
    part = http.post(f"/v1/uploads/{begun['id']}/parts", **form({}, b"1234", "data", "blob")).json()
    done = {"part_ids": [part["id"]]}
    ended = http.post(f"/v1/uploads/{begun['id']}/complete", content=json.dumps(done), headers=JSON).json()
    assert (ended["status"], ended["file"]["bytes"]) == ("completed", 4)


def test_the_job_calls_of_the_client_for_node_are_answered(server):
    http = server.http
    file = http.post("/v1/files", **form({"purpose": "fine-tune"}, chat_rows())).json()["id"]
    hyperparameters = {"n_epochs": "auto", "batch_size": 4, "learning_rate_multiplier": 1.5}
    body = {
        "training_file": file,
        "model": "lab",
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "suffix": None,
        "seed": 1,
        "metadata": {"team": "a b"},
        "defence": "sft",
    }
    job = http.post("/v1/fine_tuning/jobs", content=json.dumps(body), headers=JSON).json()
    path = f"/v1/fine_tuning/jobs/{job['id']}"
    assert job["method"]["supervised"]["hyperparameters"]["batch_size"] == 4
    for query in ("?metadata[team]=a%20b&limit=2", "?metadata%5Bteam%5D=a+b"):
        assert job["id"] in [
            each["id"] for each in http.get(f"/v1/fine_tuning/jobs{query}", headers=NODE).json()["data"]
        ]
    assert job["id"] not in [
        each["id"] for each in http.get("/v1/fine_tuning/jobs?metadata=null", headers=NODE).json()["data"]
    ]
    assert http.get(path, headers=NODE).json()["id"] == job["id"]
    assert http.get(f"{path}/events?limit=1", headers=NODE).json()["has_more"]
    assert http.get(f"{path}/checkpoints", headers=NODE).json()["data"] == []
    ends = [http.post(f"{path}/{verb}", headers=EMPTY).json()["status"] for verb in ("pause", "resume", "cancel")]
    assert ends == ["paused", "validating_files", "cancelled"]


def test_a_job_that_the_client_for_node_sends_again_is_one_job(server):
    http = server.http
    file = http.post("/v1/files", **form({"purpose": "fine-tune"}, chat_rows())).json()["id"]
    body = json.dumps({"training_file": file, "model": "lab", "seed": 99})
    sent = [
        http.post("/v1/fine_tuning/jobs", content=body, headers=JSON | {"x-stainless-retry-count": str(count)}).json()
        for count in range(3)
    ]
    assert len({job["id"] for job in sent}) == 1
