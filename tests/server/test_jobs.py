"""Creating jobs through the real client: what is accepted, what is refused, and requests that are sent again."""

import json

import httpx2
import openai
import pytest
from starlette.testclient import TestClient

from antibody_llm.server.webhooks import deliver
from tests.server.running import BASE, chat_rows, dpo_rows, train, upload


@pytest.fixture(scope="module")
def rows(server):
    return upload(server.client()).id


def test_the_object_has_every_field_of_the_contract(client, rows):
    job = client.fine_tuning.jobs.create(model="lab", training_file=rows, seed=3, metadata={"a": "b"})
    assert job.object == "fine_tuning.job"
    assert job.organization_id.startswith("org-")
    assert (job.result_files, job.error, job.finished_at, job.fine_tuned_model) == ([], None, None, None)
    assert (job.seed, job.metadata, job.validation_file, job.trained_tokens) == (3, {"a": "b"}, None, None)
    assert job.method.type == "supervised"
    assert job.method.supervised.hyperparameters.batch_size == "auto"
    assert job.safety["gate"]["thresholds"]["max_harmful_score"] == 0.1
    assert job.safety["defence"]["name"] == "antibody"


def test_a_seed_is_made_where_none_is_given(client, rows):
    assert 0 <= client.fine_tuning.jobs.create(model="lab", training_file=rows).seed < 2**31


def test_the_deprecated_hyperparameters_are_those_of_the_method(client, rows):
    job = client.fine_tuning.jobs.create(model="lab", training_file=rows, hyperparameters={"n_epochs": 4})
    assert job.hyperparameters.n_epochs == job.method.supervised.hyperparameters.n_epochs == 4


def test_rows_of_preferences_are_no_rows_of_a_supervised_job(client):
    pairs = upload(client, dpo_rows()).id
    with pytest.raises(openai.BadRequestError, match="rows for method 'dpo'") as refused:
        client.fine_tuning.jobs.create(model="lab", training_file=pairs)
    assert refused.value.code == "invalid_training_file"


REFUSED = [
    ({"model": "gpt-4o-mini"}, "model_not_found", "model"),
    ({"training_file": "file-nothing"}, "invalid_training_file", "training_file"),
    ({"validation_file": "file-nothing"}, "invalid_validation_file", "validation_file"),
    ({"method": {"type": "reinforcement", "reinforcement": {}}}, "unsupported_method", "method.type"),
    ({"method": {"type": "supervised", "dpo": {}}}, "invalid_value", "method.dpo"),
    ({"method": {"type": "magic"}}, "invalid_value", "method.type"),
    ({"hyperparameters": {"n_epochs": 51}}, "invalid_value", "hyperparameters.n_epochs"),
    ({"hyperparameters": {"n_epochs": True}}, "invalid_value", "hyperparameters.n_epochs"),
    ({"hyperparameters": {"n_epochs": "many"}}, "invalid_value", "hyperparameters.n_epochs"),
    ({"hyperparameters": {"batch_size": 0}}, "invalid_value", "hyperparameters.batch_size"),
    ({"hyperparameters": {"learning_rate_multiplier": 0}}, "invalid_value", "hyperparameters.learning_rate_multiplier"),
    ({"hyperparameters": {"epochs": 1}}, "unknown_parameter", "hyperparameters.epochs"),
    ({"suffix": ""}, "invalid_value", "suffix"),
    ({"suffix": "x" * 65}, "invalid_value", "suffix"),
    ({"suffix": "a\0b"}, "invalid_value", None),
    ({"seed": -1}, "invalid_value", "seed"),
    ({"seed": 2**31}, "invalid_value", "seed"),
    ({"metadata": {f"k{i}": "v" for i in range(17)}}, "invalid_value", "metadata"),
    ({"metadata": {"k" * 65: "v"}}, "invalid_value", "metadata." + "k" * 65 + ".[key]"),
    ({"metadata": {"k": "v" * 513}}, "invalid_value", "metadata.k"),
    ({"integrations": [{"type": "wandb", "wandb": {}}]}, "missing_required_parameter", "integrations[0].wandb.project"),
    ({"extra_body": {"defense": {}}}, "unknown_parameter", "defense"),
    ({"extra_body": {"defence": {"name": "antibodi"}}}, "unknown_defence", "defence.name"),
    ({"extra_body": {"defence": {"name": "lisa", "options": {"rh": 1}}}}, "unknown_parameter", "defence.options.rh"),
    ({"extra_body": {"defence": {"name": "lisa", "options": {"rho": "x"}}}}, "invalid_value", "defence.options.rho"),
    ({"extra_body": {"gate": {"max_harmful_score": 0.5}}}, "invalid_value", "gate.max_harmful_score"),
    ({"extra_body": {"gate": {"harmful_score": 0.5}}}, "unknown_parameter", "gate.harmful_score"),
]


@pytest.mark.parametrize(("changes", "code", "param"), REFUSED, ids=range(len(REFUSED)))
def test_a_wrong_value_is_refused_with_its_place(client, rows, changes, code, param):
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.create(**{"model": "lab", "training_file": rows} | changes)
    assert (refused.value.code, refused.value.param) == (code, param)
    assert refused.value.type == "invalid_request_error"


def test_half_a_surrogate_pair_which_no_database_stores_is_refused(server, rows):
    body = json.dumps({"model": "lab", "training_file": rows, "suffix": "\ud800"})
    answer = server.http.post("/v1/fine_tuning/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "surrogate" in answer.json()["error"]["message"]


def test_an_unknown_key_is_refused_with_the_nearest_name(client, rows):
    with pytest.raises(openai.BadRequestError, match="did you mean 'defence'"):
        client.fine_tuning.jobs.create(model="lab", training_file=rows, extra_body={"defense": {"name": "sft"}})


@pytest.mark.parametrize("num", [0, 9])
def test_too_few_examples_are_refused_before_the_job_exists(client, num):
    file = upload(client, chat_rows(num) or b"\n").id
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.create(model="lab", training_file=file)
    assert refused.value.code == ("invalid_n_examples" if num else "invalid_training_file")


def test_a_file_with_faults_or_for_another_end_is_refused_with_them(client, rows):
    for file, words in ((upload(client, b"{}\n" * 12).id, "line 1"), (upload(client, purpose="batch").id, "'batch'")):
        for name in ("training_file", "validation_file"):
            with pytest.raises(openai.BadRequestError, match=words) as refused:
                client.fine_tuning.jobs.create(**{"model": "lab", "training_file": rows} | {name: file})
            assert refused.value.param == name


def test_a_stricter_gate_is_kept(client, rows):
    job = client.fine_tuning.jobs.create(
        model="lab", training_file=rows, extra_body={"gate": {"max_harmful_score": 0.01}, "defence": "lisa"}
    )
    assert job.safety["gate"]["thresholds"]["max_harmful_score"] == 0.01
    assert job.safety["defence"] == {"name": "lisa", "options": {}}


def test_a_list_is_paged_and_filtered_by_metadata(fresh):
    client = fresh.client()
    file = upload(client).id
    made = [
        client.fine_tuning.jobs.create(model="lab", training_file=file, metadata=labels).id
        for labels in ({"a": "1"}, {"a": "2"}, None, {"a": "1", "b": "x&y"})
    ]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=1)] == made[::-1]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"a": "1"}, limit=1)] == [made[3], made[0]]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"a": "1", "b": "x&y"})] == [made[3]]
    answer = fresh.http.get("/v1/fine_tuning/jobs?metadata=null").json()
    assert [job["id"] for job in answer["data"]] == [made[2]]
    events = list(client.fine_tuning.jobs.list_events(made[0], limit=1))
    assert len(events) == len({event.id for event in events}) == 2
    for limit in (0, -1, 100_000, "x"):
        with pytest.raises(openai.BadRequestError) as refused:
            client.fine_tuning.jobs.list(limit=limit)
        assert refused.value.param == "limit"


class Unlucky(httpx2.BaseTransport):
    """Passes requests on and loses the first answers."""

    def __init__(self, app, num_lost):
        self.inner, self.num_lost = TestClient(app, base_url="https://testserver"), num_lost

    def handle_request(self, request):
        answer = self.inner.request(request.method, str(request.url), headers=request.headers, content=request.read())
        if self.num_lost:
            self.num_lost -= 1
            raise httpx2.ReadTimeout("lost", request=request)
        return httpx2.Response(answer.status_code, headers=answer.headers, content=answer.content, request=request)


def test_a_request_whose_answer_was_lost_twice_creates_one_job(fresh, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    file = upload(fresh.client()).id
    http = httpx2.Client(transport=Unlucky(fresh.app, 2), base_url="https://testserver")
    client = openai.OpenAI(api_key=fresh.key, base_url=BASE, http_client=http, max_retries=2)
    job = client.fine_tuning.jobs.create(model="lab", training_file=file)
    assert [each.id for each in fresh.client().fine_tuning.jobs.list()] == [job.id]


def create(server, file, count, **more):
    headers = {} if count is None else {"x-stainless-retry-count": str(count)}
    answer = server.http.post(
        "/v1/fine_tuning/jobs", json={"model": "lab", "training_file": file, **more}, headers=headers
    )
    assert answer.status_code == 200
    return answer.json()["id"], answer.headers.get("x-antibody-replayed")


def test_the_same_job_asked_for_twice_is_two_jobs(fresh):
    file = upload(fresh.client()).id
    assert create(fresh, file, 0)[0] != create(fresh, file, 0)[0]


def test_a_repetition_that_overtakes_the_first_sending_creates_one_job(fresh):
    file = upload(fresh.client()).id
    first, _ = create(fresh, file, 1)
    assert create(fresh, file, 0) == (first, "true")
    assert create(fresh, file, 2) == (first, "true")
    assert create(fresh, file, 0)[0] != first


def test_a_repetition_after_the_window_or_of_another_body_creates_its_own(fresh):
    file = upload(fresh.client()).id
    first, _ = create(fresh, file, 0)
    assert create(fresh, file, 1, seed=1)[0] != first
    fresh.offset = 901
    assert create(fresh, file, 1)[0] != first


def test_a_client_that_does_not_count_is_taken_to_repeat_itself_for_a_minute(fresh):
    file = upload(fresh.client()).id
    first, _ = create(fresh, file, None)
    assert create(fresh, file, None) == (first, "true")
    fresh.offset = 61
    assert create(fresh, file, None)[0] != first


def test_a_project_has_only_so_many_jobs_at_once(tmp_path):
    from antibody_llm.server.settings import Limits
    from tests.server.running import Server

    with Server(tmp_path, limits=Limits(active_jobs=1)) as server:
        client = server.client()
        file = upload(client).id
        job = client.fine_tuning.jobs.create(model="lab", training_file=file)
        with pytest.raises(openai.RateLimitError) as refused:
            client.fine_tuning.jobs.create(model="lab", training_file=file)
        assert refused.value.response.headers["x-should-retry"] == "false"
        client.fine_tuning.jobs.cancel(job.id)
        client.fine_tuning.jobs.create(model="lab", training_file=file)


def test_a_job_may_continue_a_released_model_and_keeps_the_base_of_the_chain(fresh):
    client = fresh.client()
    file = upload(client).id
    names = []
    for model in ("meta-llama/Llama-3.2-1B", None, None):
        job = client.fine_tuning.jobs.create(model=model or names[-1], training_file=file)
        train(fresh, steps=1)
        names.append(client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model)
    assert all(name.startswith("ft:meta-llama/Llama-3.2-1B:acme::") for name in names)
    assert fresh.queue.model(names[2]).parent == names[1]
    job = client.fine_tuning.jobs.create(model=names[2], training_file=file)
    claimed = fresh.queue.claim("w")
    assert (claimed.job.id, claimed.job.base, claimed.job.parent) == (job.id, "meta-llama/Llama-3.2-1B", names[2])
    assert len(fresh.queue.chain(claimed)) == 3


def test_a_model_that_the_gate_refused_cannot_be_continued(fresh):
    client = fresh.client()
    job = client.fine_tuning.jobs.create(model="lab", training_file=upload(client).id)
    train(fresh, status="failed", error={"code": "safety_gate_failed", "message": "Refused.", "param": None})
    job = client.fine_tuning.jobs.retrieve(job.id)
    assert (job.status, job.fine_tuned_model, job.error.code) == ("failed", None, "safety_gate_failed")
    for step in (None, 1, 2):
        name = f"ft:lab:acme::{job.id[6:18]}" + (f":ckpt-step-{step}" if step else "")
        assert fresh.queue.model(name) is not None
        with pytest.raises(openai.BadRequestError):
            client.fine_tuning.jobs.create(model=name, training_file=job.training_file)
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(name)


def test_a_project_has_only_so_many_uploads_screened_a_day(tmp_path):
    from antibody_llm.server.settings import Limits
    from tests.server.running import Server

    with Server(tmp_path, limits=Limits(screenings_per_day=1)) as server:
        client = server.client()
        file = upload(client).id
        client.fine_tuning.jobs.cancel(client.fine_tuning.jobs.create(model="lab", training_file=file).id)
        with pytest.raises(openai.RateLimitError) as refused:
            client.fine_tuning.jobs.create(model="lab", training_file=file)
        assert refused.value.code == "screening_limit_exceeded"
        server.offset = 86401
        client.fine_tuning.jobs.create(model="lab", training_file=file)


def test_a_refused_model_is_an_alert_to_its_project(fresh):
    client = fresh.client()
    client.webhooks.create(name="h", url="https://example.com/", event_types=["safety.alert.created"])
    job = client.fine_tuning.jobs.create(model="lab", training_file=upload(client).id)
    train(fresh, steps=0, status="failed", error={"code": "safety_gate_failed", "message": "Refused.", "param": None})
    found = client.safety.alerts.retrieve(client.fine_tuning.jobs.retrieve(job.id).safety["alert"])
    assert (found.error_type, found.reason) == ("safety_gate_failed", "Refused.")
    deliver(fresh.context)
    assert json.loads(fresh.posts[0][1])["data"] == {"id": found.id}
