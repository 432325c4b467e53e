"""Models that pass the gate and wait for an operator, through the real client, with a worker that trains nothing."""

import json
import os
from contextlib import suppress
from dataclasses import asdict, replace
from threading import Thread

import openai
import pytest

from antibody_llm.evaluation.measures import wilson_interval
from antibody_llm.server.app import create_app, make_context
from antibody_llm.server.database.tables import Audit, Job, Model
from antibody_llm.server.gate import GateThresholds, Measured, Outcome, Share, decide, outcome
from antibody_llm.server.settings import GateSettings, OfferedModel
from antibody_llm.server.worker import Worker
from tests.server.running import DEFENCES, Server, upload
from tests.server.stages_here import Script

CHECKPOINT = 2
WHY = {"reason": "read 40 answers"}


def screen(settings):
    os.makedirs(settings["output"])
    with open(f"{settings['output']}/rows.jsonl", "w") as file:
        file.write(json.dumps({"line": 1, "probability": 0.9, "flags": []}) + "\n")
    shown = dict.fromkeys(("verdict", "estimated_harmful_share", "interval", "num_likely_harmful", "measure"))
    return [{"event": "result", "screening": {**shown, "num_rows": 12, "flags": {}, "warnings": []}}]


def train(settings):
    run, taken = settings["output"], f"{settings['output']}/../taken/checkpoint-{CHECKPOINT}"
    for folder in (f"{run}/adapter", taken):
        os.makedirs(folder)
        for name in ("adapter_config.json", "antibody.json"):
            with open(f"{folder}/{name}", "w") as file:
                file.write("{}")
    with open(f"{run}/config.yaml", "w") as file:
        file.write("{}")
    with open(f"{run}/metrics.jsonl", "w") as file:
        file.write('{"step": 1, "loss": 0.5}\n')
    yield {"event": "step", "step": 1, "num_steps": 3, "tokens": 7, "metrics": {"loss": 0.5}}
    yield {"event": "checkpoint", "step": CHECKPOINT, "folder": taken}
    yield {"event": "result", "model": f"{run}/adapter", "skipped": []}


def measure(harmful=0, broken=False):
    """A stage of the gate that finds so many harmful answers among 100."""

    def share(hits):
        low, high = wilson_interval(hits, 100)
        return {"value": hits / 100, "low": low, "high": high, "n": 100}

    def stage(settings):
        judged = [{"judge": "j", "harmful_score": share(harmful), "over_refusal": share(1)}]
        asked = {"harmful_score": 100, "over_refusal": 100}
        for model in settings["models"]:
            found = {"evaluation": {"judged": judged}, "suite": "s", "judge": "j", "asked": asked}
            yield {"event": "measured", "name": model["name"], **({"failure": "no judge"} if broken else found)}
        yield {"event": "result"}

    return stage


def holding(home, **gate):
    return Server(home, models=(OfferedModel(name="lab"),), gate=GateSettings(hold=True, **gate))


def work_off(server, **measured):
    script = Script(screen=screen, train=train, measure=measure(**measured))
    settings = server.context.settings
    hand = Worker(server.queue, server.context.blobs, settings, executor=script, scratch=settings.home / "work")
    while hand.once():
        pass
    return script


@pytest.fixture
def server(tmp_path):
    with holding(tmp_path) as made:
        yield made


@pytest.fixture
def held(server):
    """A held job: its client, its id and the name of its result."""
    client = server.client()
    job = client.fine_tuning.jobs.create(model="lab", training_file=upload(client).id).id
    work_off(server)
    return client, job, result_of(server, job)


def result_of(server, job):
    with server.context.database.read() as session:
        return session.query(Model).filter_by(job_id=job, step=None).one().name


def decide_on(server, model, verb, **body):
    return server.http.post(f"/v1/operator/models/{model}/{verb}", json=body or WHY)


def actions(server, subject):
    with server.context.database.read() as session:
        return [row.action for row in session.query(Audit).filter_by(subject=subject).order_by(Audit.seq)]


def messages(client, job):
    return [event.message for event in client.fine_tuning.jobs.list_events(job, limit=100).data][::-1]


def unreachable(client, model):
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(model)
    with pytest.raises(openai.BadRequestError, match="not released"):
        client.fine_tuning.jobs.create(model=model, training_file=upload(client).id)
    return model not in [each.id for each in client.models.list()]


# -- held --------------------------------------------------------------------------------------------------------


def test_a_model_that_passes_is_out_of_reach_and_its_job_goes_on_running_for_whoever_polls(server, held):
    client, job_id, model = held
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert (job.status, job.fine_tuned_model, job.error, job.finished_at) == ("running", None, None, None)
    assert job.safety["held"]["since"] == pytest.approx(server.now(), abs=60)
    assert job.safety["gate"]["released"]
    assert "held for the operator" in messages(client, job_id)[-1]
    assert [listed.status for listed in client.fine_tuning.jobs.list()] == ["running"]
    assert len(job.result_files) == 1
    assert unreachable(client, model)


def test_a_checkpoint_that_passes_is_held_too(server, held):
    client, job_id, model = held
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job_id).data
    assert unreachable(client, checkpoint.fine_tuned_model_checkpoint)
    (shown,) = client.fine_tuning.jobs.retrieve(job_id).safety["checkpoints"]
    assert (shown["held"], shown["released"]) == (True, True)
    assert actions(server, checkpoint.fine_tuned_model_checkpoint) == ["gate.held"]
    assert actions(server, model) == ["gate.held"]


def test_a_held_job_occupies_no_worker_and_none_takes_it_however_long_it_waits(server, held):
    server.offset = 10**6
    assert server.queue.claim("another") is None
    assert server.queue.depth() == ({"held": 1}, 0)
    assert work_off(server).started == []


def test_a_held_job_survives_a_restart(server, held):
    _, job_id, model = held
    context = make_context(server.context.settings, defences=DEFENCES)
    try:
        again = type("Again", (), {"app": create_app(context), "key": server.key})
        client = Server.client(again)
        assert client.fine_tuning.jobs.retrieve(job_id).status == "running"
        assert unreachable(client, model)
    finally:
        context.database.close()


def test_a_worker_that_dies_before_the_hold_is_recorded_releases_nothing_and_another_holds_it(server, monkeypatch):
    class PowerCut(BaseException):
        pass

    def cut(*_, **__):
        raise PowerCut

    client = server.client()
    job = client.fine_tuning.jobs.create(model="lab", training_file=upload(client).id).id
    with monkeypatch.context() as patch:
        patch.setattr(server.queue, "finish", cut)
        with pytest.raises(PowerCut):
            work_off(server)
    with server.context.database.read() as session:
        assert [(row.step, row.released) for row in session.query(Model)] == [(CHECKPOINT, False)]
    server.offset = 1000
    assert work_off(server).started == ["measure"]
    assert client.fine_tuning.jobs.retrieve(job).safety["held"]
    assert unreachable(client, result_of(server, job))


def test_without_a_verdict_nothing_is_held_and_the_job_fails(server):
    client = server.client()
    job = client.fine_tuning.jobs.create(model="lab", training_file=upload(client).id).id
    work_off(server, broken=True)
    assert client.fine_tuning.jobs.retrieve(job).error.code == "safety_gate_failed"


def test_a_model_that_fails_the_gate_is_not_held_and_its_job_fails(server):
    client = server.client()
    job_id = client.fine_tuning.jobs.create(model="lab", training_file=upload(client).id).id
    work_off(server, harmful=50)
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert (job.status, job.error.code) == ("failed", "safety_gate_failed")
    assert "held" not in job.safety
    assert actions(server, result_of(server, job_id)) == ["gate.refused"]


def test_models_are_held_at_the_gate_s_word_and_the_operator_s_setting_alone():
    low, high = wilson_interval(0, 100)
    share = Share(value=0.0, low=low, high=high, n=100, asked=100)
    fine = Measured(suite="s", judge="j", harmful_score=share, over_refusal=share)
    asked = {"base_name": "b", "thresholds": GateThresholds(), "validated": False}
    passed, failed = decide(fine, fine, **asked), decide(replace(fine, harmful_score=None), fine, **asked)
    assert [outcome(passed, hold=hold) for hold in (False, True)] == [Outcome.RELEASED, Outcome.HELD]
    assert [outcome(failed, hold=hold) for hold in (False, True)] == [Outcome.REFUSED, Outcome.REFUSED]


# -- decided -----------------------------------------------------------------------------------------------------


def test_an_approved_model_succeeds_its_job_and_can_be_asked_and_its_checkpoint_cannot(server, held):
    client, job_id, model = held
    client.webhooks.create(name="h", url="https://example.com/", event_types=["fine_tuning.job.succeeded"])
    assert decide_on(server, model, "approve").json()["released"]
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert (job.status, job.fine_tuned_model, job.error) == ("succeeded", model, None)
    assert job.finished_at is not None
    assert "held" not in job.safety
    assert job.safety["override"]["reason"] == WHY["reason"]
    assert client.models.retrieve(model).id == model
    assert messages(client, job_id)[-1] == "The job has successfully completed"
    assert actions(server, model) == ["gate.held", "model.approved"]
    assert unreachable(client, f"{model}:ckpt-step-{CHECKPOINT}")
    from antibody_llm.server.webhooks import deliver

    assert deliver(server.context) == 1


def test_an_approved_checkpoint_can_be_asked_and_its_job_is_still_held(server, held):
    client, job_id, model = held
    checkpoint = f"{model}:ckpt-step-{CHECKPOINT}"
    decide_on(server, checkpoint, "approve")
    assert client.models.retrieve(checkpoint).id == checkpoint
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert (job.status, job.fine_tuned_model) == ("running", None)
    (shown,) = job.safety["checkpoints"]
    assert (shown["held"], shown["override"]["action"]) == (False, "model.approved")
    assert unreachable(client, model)


def test_nobody_releases_what_the_gate_has_not_measured(server, held):
    _, _, model = held
    checkpoint = f"{model}:ckpt-step-{CHECKPOINT}"
    with server.context.database.write() as session:
        session.query(Model).filter_by(name=checkpoint).update({"gate": None, "released": False})
    answer = server.http.post(f"/v1/operator/models/{checkpoint}/approve", json=WHY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "not_measured")
    decide_on(server, checkpoint, "reject")  # which is no verdict of the gate
    assert server.http.post(f"/v1/operator/models/{checkpoint}/approve", json=WHY).status_code == 400
    assert unreachable(server.client(), checkpoint)


def test_a_rejected_model_fails_its_job_with_a_code_of_its_own_and_an_alert(server, held):
    client, job_id, model = held
    assert not decide_on(server, model, "reject", reason="it names real people").json()["released"]
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert (job.status, job.error.code, job.fine_tuned_model) == ("failed", "held_model_rejected", None)
    assert "it names real people" in job.error.message
    assert client.safety.alerts.retrieve(job.safety["alert"]).error_type == "held_model_rejected"
    assert unreachable(client, model)


def test_a_rejected_model_is_approved_later_as_a_refused_one_is(server, held):
    client, job_id, model = held
    decide_on(server, model, "reject")
    decide_on(server, model, "approve")
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert (job.status, job.error.code, job.fine_tuned_model) == ("failed", "held_model_rejected", model)
    assert client.models.retrieve(model).id == model
    assert actions(server, model) == ["gate.held", "model.rejected", "model.approved"]


@pytest.mark.parametrize("body", [{}, {"reason": ""}, {"reason": "  \n "}, {"reason": " a "}, {"reason": "x" * 4001}])
def test_no_decision_without_a_written_reason(server, held, body):
    _, job_id, model = held
    for verb in ("approve", "reject"):
        assert server.http.post(f"/v1/operator/models/{model}/{verb}", json=body).status_code == 400
    assert server.client().fine_tuning.jobs.retrieve(job_id).status == "running"


def test_a_customer_cannot_approve_what_is_held(server, held):
    client, job_id, model = held
    _, key = server.tenant("others")
    headers = {"authorization": f"Bearer {key}"}
    answer = server.http.post(f"/v1/operator/models/{model}/approve", json=WHY, headers=headers)
    assert answer.status_code == 403
    assert client.fine_tuning.jobs.retrieve(job_id).status == "running"


def test_what_an_operator_rejected_stays_so_where_a_worker_judges_it_later(server):
    client = server.client()
    job = client.fine_tuning.jobs.create(model="lab", training_file=upload(client).id).id
    claimed = server.queue.claim("w")
    server.queue.screened(claimed)
    claimed = server.queue.claim("w")
    name = server.queue.checkpoint(claimed, step=1, metrics={}, adapter="models/x")
    decide_on(server, name, "reject")
    server.queue.judged(claimed, name, gate={"released": True}, released=True)
    assert unreachable(client, name)
    assert client.fine_tuning.jobs.retrieve(job).status == "running"


def test_a_customer_who_cancels_and_an_operator_who_approves_at_once_leave_one_answer(tmp_path, postgres):
    with Server(
        tmp_path, database=postgres(), gate=GateSettings(hold=True), models=(OfferedModel(name="lab"),)
    ) as server:
        client = server.client()
        for _ in range(5):
            job_id = client.fine_tuning.jobs.create(model="lab", training_file=upload(client).id).id
            work_off(server)
            model = result_of(server, job_id)
            with suppress(openai.BadRequestError):  # of the one who comes second
                both = [Thread(target=decide_on, args=(server, model, "approve"))]
                both[0].start()
                client.fine_tuning.jobs.cancel(job_id)
            both[0].join()
            job = client.fine_tuning.jobs.retrieve(job_id)
            assert (job.status, job.fine_tuned_model) in (("succeeded", model), ("cancelled", None))
            reached = model in [each.id for each in client.models.list()]
            assert reached == (job.status == "succeeded")


# -- what its customer may do ------------------------------------------------------------------------------------


def test_a_held_job_is_cancelled_and_then_nobody_can_approve_it(server, held):
    client, job_id, model = held
    job = client.fine_tuning.jobs.cancel(job_id)
    assert (job.status, job.fine_tuned_model) == ("cancelled", None)
    assert "held" not in job.safety
    assert decide_on(server, model, "approve").status_code == 404
    assert client.fine_tuning.jobs.retrieve(job_id).fine_tuned_model is None


def test_a_held_job_has_nothing_to_pause_and_resuming_it_changes_nothing(server, held):
    client, job_id, _ = held
    with pytest.raises(openai.BadRequestError, match="held for the operator") as refused:
        client.fine_tuning.jobs.pause(job_id)
    assert refused.value.code == "job_is_held"
    assert client.fine_tuning.jobs.resume(job_id).status == "running"
    assert server.queue.claim("another") is None


def test_a_held_result_is_deleted_by_cancelling_its_job_and_not_from_under_it(server, held):
    client, _, model = held
    with pytest.raises(openai.BadRequestError, match="Cancel the job"):
        client.models.delete(model)
    client.models.delete(f"{model}:ckpt-step-{CHECKPOINT}")


def test_a_held_job_counts_among_those_that_have_not_ended(server, held):
    settings = server.context.settings
    server.context.settings = replace(settings, limits=replace(settings.limits, active_jobs=1))
    client = server.client()
    with pytest.raises(openai.RateLimitError):
        client.fine_tuning.jobs.create(model="lab", training_file=upload(client).id)


def test_the_setting_is_off_by_default_and_then_nothing_is_held(tmp_path):
    assert asdict(GateSettings())["hold"] is False
    with Server(tmp_path) as server:
        client = server.client()
        job = client.fine_tuning.jobs.create(model="lab", training_file=upload(client).id).id
        work_off(server)
        assert client.fine_tuning.jobs.retrieve(job).status == "succeeded"
        with server.context.database.read() as session:
            assert session.query(Job).one().status == "succeeded"
