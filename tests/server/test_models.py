"""Models and permissions through the real client."""

import openai
import pytest

from antibody_llm.server.housekeeping import housekeep
from tests.server.running import train, upload


@pytest.fixture(scope="module")
def tuned(server):
    client = server.client()
    job = client.fine_tuning.jobs.create(
        model="meta-llama/Llama-3.2-1B", training_file=upload(client).id, suffix="a/b c:../x"
    )
    train(server, steps=1)
    return client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model


def test_names_with_slashes_and_colons_are_found(client, tuned):
    assert tuned.startswith("ft:meta-llama/Llama-3.2-1B:acme:a-b-c-..-x:")
    assert client.models.retrieve(tuned).owned_by == "acme"
    assert client.models.retrieve(tuned + ":ckpt-step-1").id.endswith(":ckpt-step-1")
    assert client.models.retrieve("meta-llama/Llama-3.2-1B").owned_by == "system"


def test_the_list_has_the_offered_and_the_released_models(client, tuned):
    assert [model.id for model in client.models.list()] == [
        "lab", "meta-llama/Llama-3.2-1B", tuned, tuned + ":ckpt-step-1",
    ]  # fmt: skip


def test_a_model_that_never_was_is_not_found(client):
    for name in ("gpt-4", "ft:lab:acme::nothing", "x" * 5000, "a/b/c"):
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(name)


def test_a_base_model_cannot_be_deleted(client):
    with pytest.raises(openai.PermissionDeniedError):
        client.models.delete("lab")


def test_a_deleted_model_is_gone_with_its_weights_unless_a_job_needs_them(fresh):
    client = fresh.client()
    file = upload(client).id
    client.fine_tuning.jobs.create(model="lab", training_file=file)
    train(fresh, steps=0)
    name = client.fine_tuning.jobs.list().data[0].fine_tuned_model
    prefix = fresh.queue.model(name).adapter
    job = client.fine_tuning.jobs.create(model=name, training_file=file)
    assert client.models.delete(name).deleted
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(name)
    housekeep(fresh.context)
    assert fresh.context.blobs.exists(prefix)
    client.fine_tuning.jobs.cancel(job.id)
    housekeep(fresh.context)
    assert not fresh.context.blobs.exists(prefix)


def test_a_deleted_model_keeps_its_weights_while_another_lies_on_them_however_long_the_chain(fresh):
    client = fresh.client()
    file = upload(client).id
    chain = ["lab"]
    for _ in range(3):
        job = client.fine_tuning.jobs.create(model=chain[-1], training_file=file).id
        train(fresh, steps=0)
        chain.append(client.fine_tuning.jobs.retrieve(job).fine_tuned_model)
    prefixes = [fresh.queue.model(name).adapter for name in chain[1:]]

    def left():
        housekeep(fresh.context)
        return [fresh.context.blobs.exists(prefix) for prefix in prefixes]

    for name in chain[1:3]:
        client.models.delete(name)
        assert left() == [True, True, True]
    assert client.models.retrieve(chain[3]).id == chain[3]
    client.models.delete(chain[3])
    for _ in prefixes:
        found = left()
    assert found == [False, False, False]


def test_a_checkpoint_that_is_deleted_while_its_job_runs_keeps_its_weights_until_the_job_ends(fresh):
    client = fresh.client()
    job = client.fine_tuning.jobs.create(model="lab", training_file=upload(client).id)
    fresh.queue.screened(fresh.queue.claim("w"))
    claimed = fresh.queue.claim("w")
    (fresh.context.settings.home / "a").mkdir()
    (fresh.context.settings.home / "a" / "adapter_config.json").write_text("{}")
    prefix = fresh.context.blobs.store_folder(fresh.context.settings.home / "a")
    name = fresh.queue.checkpoint(claimed, step=1, metrics={}, adapter=prefix)
    client.models.delete(name)
    housekeep(fresh.context)
    assert fresh.context.blobs.exists(prefix)
    client.fine_tuning.jobs.cancel(job.id)
    housekeep(fresh.context)
    assert not fresh.context.blobs.exists(prefix)


def test_permissions_are_given_listed_and_taken_back(server, client, tuned):
    permissions = client.fine_tuning.checkpoints.permissions
    made = [
        server.http.post("/v1/operator/projects", json={"name": f"p{i}", "organization": "acme"}).json()["id"]
        for i in range(3)
    ]
    name = tuned + ":ckpt-step-1"
    given = list(permissions.create(name, project_ids=made))
    assert [each.project_id for each in given] == made
    again = permissions.create(name, project_ids=made[:1])
    assert again.data[0].id == given[0].id
    assert [each.project_id for each in permissions.list(name, limit=1)] == made[::-1]
    assert [each.project_id for each in permissions.list(name, order="ascending", limit=2)] == made
    assert [each.id for each in permissions.list(name, project_id=made[1])] == [given[1].id]
    assert permissions.retrieve(name, limit=1).has_more
    other = server.client(project=made[0])
    assert other.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError):
        other.models.delete(name)
    assert permissions.delete(given[0].id, fine_tuned_model_checkpoint=name).deleted
    with pytest.raises(openai.NotFoundError):
        other.models.retrieve(name)
    with pytest.raises(openai.NotFoundError):
        permissions.delete(given[0].id, fine_tuned_model_checkpoint=name)


def test_another_organisations_project_gets_no_permission(server, client, tuned):
    project, _ = server.tenant("elsewhere")
    with pytest.raises(openai.BadRequestError, match="no such project"):
        client.fine_tuning.checkpoints.permissions.create(tuned, project_ids=[project])


def test_an_operator_releases_a_refused_model_with_a_reason_and_withdraws_it(fresh):
    client = fresh.client()
    job = client.fine_tuning.jobs.create(model="lab", training_file=upload(client).id)
    train(fresh, steps=0, status="failed", error={"code": "safety_gate_failed", "message": "no", "param": None})
    name = f"ft:lab:acme::{job.id[6:18]}"
    path = "/v1/operator/models/" + name.replace("/", "%2F")
    assert fresh.http.post(path + "/approve", json={}).status_code == 400
    assert fresh.http.post(path + "/approve", json={"reason": "read every answer"}).json()["released"]
    assert client.models.retrieve(name).id == name
    assert client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model == name
    assert not fresh.http.post(path + "/reject", json={"reason": "second thoughts"}).json()["released"]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(name)
    entries = fresh.http.get("/v1/operator/audit", params={"subject": name}).json()["data"]
    assert [entry["action"] for entry in entries] == ["model.rejected", "model.approved", "gate.refused"]
    assert entries[1]["data"] == {"reason": "read every answer"}
    assert fresh.http.post("/v1/operator/models/ft:x/approve", json={"reason": "none"}).status_code == 404
