"""Keys, and what is another tenant's: 404 everywhere, as if it were not there."""

import openai
import pytest

from tests.server.running import train, upload


@pytest.fixture(scope="module")
def theirs(server):
    """Everything that a tenant can own."""
    client = server.client()
    file = upload(client)
    job = client.fine_tuning.jobs.create(model="lab", training_file=file.id)
    train(server, steps=1)
    job = client.fine_tuning.jobs.retrieve(job.id)
    hook = client.webhooks.create(name="h", url="https://example.com/x", event_types=["fine_tuning.job.failed"])
    up = client.uploads.create(bytes=4, filename="a", mime_type="text/jsonl", purpose="fine-tune")
    event = client.fine_tuning.jobs.list_events(job.id).data[0]
    return {
        "file": file.id, "job": job.id, "model": job.fine_tuned_model, "hook": hook.id, "upload": up.id,
        "event": event.id,
    }  # fmt: skip


@pytest.fixture(scope="module")
def stranger(server):
    return server.client(server.tenant("strangers")[1])


FOREIGN = {
    "file": lambda c, t: c.files.retrieve(t["file"]),
    "content": lambda c, t: c.files.content(t["file"]),
    "delete": lambda c, t: c.files.delete(t["file"]),
    "job": lambda c, t: c.fine_tuning.jobs.retrieve(t["job"]),
    "cancel": lambda c, t: c.fine_tuning.jobs.cancel(t["job"]),
    "pause": lambda c, t: c.fine_tuning.jobs.pause(t["job"]),
    "resume": lambda c, t: c.fine_tuning.jobs.resume(t["job"]),
    "events": lambda c, t: c.fine_tuning.jobs.list_events(t["job"]),
    "checkpoints": lambda c, t: c.fine_tuning.jobs.checkpoints.list(t["job"]),
    "model": lambda c, t: c.models.retrieve(t["model"]),
    "delete model": lambda c, t: c.models.delete(t["model"]),
    "permissions": lambda c, t: c.fine_tuning.checkpoints.permissions.list(t["model"]),
    "permit": lambda c, t: c.fine_tuning.checkpoints.permissions.create(t["model"], project_ids=["proj_x"]),
    "part": lambda c, t: c.uploads.parts.create(t["upload"], data=b"x"),
    "complete": lambda c, t: c.uploads.complete(t["upload"], part_ids=["part_x"]),
    "cancel upload": lambda c, t: c.uploads.cancel(t["upload"]),
    "hook": lambda c, t: c.webhooks.retrieve(t["hook"]),
    "update hook": lambda c, t: c.webhooks.update(t["hook"], name="mine"),
    "rotate": lambda c, t: c.webhooks.rotate_secret(t["hook"]),
    "test hook": lambda c, t: c.webhooks.test(t["hook"], event_type="fine_tuning.job.failed"),
    "delete hook": lambda c, t: c.webhooks.delete(t["hook"]),
    "alert": lambda c, t: c.safety.alerts.retrieve("alert_x"),
    "case": lambda c, t: c.safety.cases.retrieve("case_x"),
}


@pytest.mark.parametrize("call", FOREIGN.values(), ids=FOREIGN)
def test_what_is_anothers_is_not_there(stranger, theirs, call):
    with pytest.raises(openai.NotFoundError):
        call(stranger, theirs)


@pytest.mark.parametrize("call", FOREIGN.values(), ids=FOREIGN)
def test_what_was_never_there_reads_the_same(stranger, theirs, call):
    nothing = dict.fromkeys(theirs, "nothing")
    with pytest.raises(openai.NotFoundError) as never:
        call(stranger, nothing)
    with pytest.raises(openai.NotFoundError) as foreign:
        call(stranger, theirs)
    assert never.value.code == foreign.value.code


def test_what_is_anothers_cannot_be_trained_on_continued_or_paged_from(stranger, theirs):
    mine = upload(stranger).id
    asked = [
        {"model": "lab", "training_file": theirs["file"]},
        {"model": "lab", "training_file": mine, "validation_file": theirs["file"]},
        {"model": theirs["model"], "training_file": mine},
    ]
    for body in asked:
        with pytest.raises(openai.BadRequestError):
            stranger.fine_tuning.jobs.create(**body)
    for listing, after in ((stranger.files.list, "file"), (stranger.fine_tuning.jobs.list, "job")):
        with pytest.raises(openai.BadRequestError):
            listing(after=theirs[after])


def test_lists_hold_ones_own_alone(stranger, theirs):
    assert theirs["model"] not in [model.id for model in stranger.models.list()]
    for listing in (stranger.fine_tuning.jobs.list, stranger.webhooks.list):
        assert listing().data == []


@pytest.mark.parametrize("header", ["", "Bearer ", "Bearer wrong", "Basic abc", "Bearer \u00e9"])
def test_without_a_valid_key_nothing_answers_but_health(server, header):
    from starlette.testclient import TestClient

    http = TestClient(server.app)
    headers = {"authorization": header.encode("latin-1")} if header else {}
    for path in ("/v1/models", "/v1/files", "/v1/openapi.json", "/metrics", "/v1/operator/keys"):
        answer = http.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").status_code == 200


def test_organisation_and_project_headers_must_be_the_keys(server):
    project, key = server.tenant("other-org")
    assert server.client(key, organization="other-org", project=project).models.list().data
    for options in ({"organization": "org-x"}, {"project": "proj_x"}, {"project": "p" * 100}):
        with pytest.raises(openai.PermissionDeniedError):
            server.client(key, **options).models.list()


def test_an_operator_acts_in_any_project(server):
    project, key = server.tenant("third-org")
    file = upload(server.client(key))
    assert server.client(project=project).files.retrieve(file.id).id == file.id
    with pytest.raises(openai.NotFoundError):
        server.client().files.retrieve(file.id)


def test_an_operators_routes_are_closed_to_customers(server):
    _, key = server.tenant("fourth-org")
    answer = server.http.get("/v1/operator/keys", headers={"authorization": f"Bearer {key}"})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "operator_only"


def test_keys_are_made_rotated_and_revoked_and_only_digests_are_stored(fresh):
    post = fresh.http.post
    project = post("/v1/operator/projects", json={"name": "p", "organization": "new-org"}).json()
    made = post("/v1/operator/keys", json={"name": "k", "project_id": project["id"], "expires_in": 100}).json()
    client = fresh.client(made["key"])
    client.models.list()
    new = post(f"/v1/operator/keys/{made['id']}/rotate").json()
    with pytest.raises(openai.AuthenticationError, match="revoked"):
        client.models.list()
    client = fresh.client(new["key"])
    client.models.list()
    fresh.offset = 101
    with pytest.raises(openai.AuthenticationError, match="expired"):
        client.models.list()
    assert fresh.http.delete(f"/v1/operator/keys/{new['id']}").json()["revoked_at"]
    (operator,) = [each for each in fresh.http.get("/v1/operator/keys").json()["data"] if each["scope"] == "operator"]
    assert fresh.http.delete(f"/v1/operator/keys/{operator['id']}").json()["error"]["code"] == "last_operator_key"
    stored = (fresh.context.settings.home / "server.sqlite-wal").read_bytes()
    stored += (fresh.context.settings.home / "server.sqlite").read_bytes()
    assert made["id"].encode() in stored
    for secret in (made["key"], new["key"], fresh.key):
        assert secret.encode() not in stored
    assert post("/v1/operator/keys", json={"name": "k", "project_id": "proj_x"}).status_code == 400


def test_the_first_key_is_made_once(fresh):
    from antibody_llm.server.auth import first_key

    assert first_key(fresh.context.database, "acme") is None


def test_expired_keys_are_no_operator_s_last_way_in_and_keep_no_new_first_key_from_being_made(fresh):
    from antibody_llm.server.auth import first_key

    brief = fresh.http.post("/v1/operator/keys", json={"name": "k", "scope": "operator", "expires_in": 100}).json()
    fresh.offset = 101
    (first,) = [key for key in fresh.http.get("/v1/operator/keys").json()["data"] if key["name"] == "first"]
    assert fresh.http.delete(f"/v1/operator/keys/{first['id']}").json()["error"]["code"] == "last_operator_key"
    assert fresh.http.delete(f"/v1/operator/keys/{brief['id']}").json()["revoked_at"]
    fresh.offset = 0
    last = fresh.http.post("/v1/operator/keys", json={"name": "l", "scope": "operator", "expires_in": 200}).json()
    assert fresh.http.delete(f"/v1/operator/keys/{first['id']}").json()["revoked_at"]
    fresh.offset = 201
    secret = first_key(fresh.context.database, "acme")
    assert secret not in (None, fresh.key, last["key"])
    assert fresh.client(secret).models.list()


def test_a_key_has_a_rate_of_its_own(tmp_path):
    from antibody_llm.server.settings import Limits
    from tests.server.running import Server

    with Server(tmp_path, limits=Limits(requests_per_minute=2)) as server:
        _, other = server.tenant("o")
        client = server.client()
        client.models.list(), client.models.list()
        with pytest.raises(openai.RateLimitError):
            client.models.list()
        server.client(other).models.list()


def test_an_organisation_has_a_rate_room_and_number_of_jobs_of_its_own_whatever_its_projects_have(tmp_path):
    from antibody_llm.server.settings import Limits
    from tests.server.running import Server, chat_rows, upload

    def second_project(server):
        """A client of another project of the first key's organisation."""
        organization = server.http.get("/v1/operator/projects").json()["data"][0]["organization"]
        made = server.http.post("/v1/operator/projects", json={"name": "b", "organization": organization}).json()
        body = {"name": "k", "project_id": made["id"]}
        return server.client(server.http.post("/v1/operator/keys", json=body).json()["key"])

    with Server(tmp_path / "rate", limits=Limits(organization_requests_per_minute=5)) as server:
        second = second_project(server)  # three requests of the first key
        second.models.list(), second.models.list()
        with pytest.raises(openai.RateLimitError, match="this organisation may make 5 a minute"):
            second.models.list()
        server.client(server.tenant("o")[1]).models.list()
    with Server(tmp_path / "room", limits=Limits(organization_bytes=1500, organization_active_jobs=1)) as server:
        second, first = second_project(server), server.client()
        file = upload(first, chat_rows(10))
        with pytest.raises(openai.BadRequestError, match="The organisation stores"):
            upload(second, chat_rows(10))
        first.fine_tuning.jobs.create(model="lab", training_file=file.id)
        first.files.delete(file.id)
        own = upload(second, chat_rows(10)).id
        with pytest.raises(openai.RateLimitError, match="The organisation has 1 jobs") as refused:
            second.fine_tuning.jobs.create(model="lab", training_file=own)
        assert refused.value.code == "job_limit_exceeded"


def test_a_rate_refills_evenly():
    from antibody_llm.server.auth import Rates
    from antibody_llm.server.errors import ApiError

    now = 0.0
    rates = Rates(clock=lambda: now)
    for _ in range(60):
        rates.count("k", "requests", 60)
    with pytest.raises(ApiError):
        rates.count("k", "requests", 60)
    now = 1.0
    rates.count("k", "requests", 60)
    with pytest.raises(ApiError) as refused:
        rates.count("k", "requests", 60)
    assert refused.value.headers["retry-after-ms"] == "1000"
