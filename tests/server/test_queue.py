"""Leases and fencing tokens: who holds a job, and whose writes count."""

import threading
from contextlib import suppress

import pytest

from antibody_llm.server.claims import LeaseLost
from tests.server.running import Server, train, upload


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh(request, tmp_path):
    url = request.getfixturevalue("postgres")() if request.param == "postgresql" else ""
    with Server(tmp_path, database=url) as server:
        yield server


def queued(server, num=1):
    """Screened jobs, oldest first."""
    client = server.client()
    file = upload(client).id
    made = [client.fine_tuning.jobs.create(model="lab", training_file=file).id for _ in range(num)]
    for _ in made:
        server.queue.screened(server.queue.claim("screener"))
    return made


def status(server, job):
    return server.client().fine_tuning.jobs.retrieve(job).status


def test_jobs_are_claimed_oldest_first_and_each_once(fresh):
    made = queued(fresh, 3)
    assert [fresh.queue.claim(f"w{i}").job.id for i in range(3)] == made
    assert fresh.queue.claim("w3") is None


def test_many_workers_at_once_never_claim_the_same_job(fresh):
    made = queued(fresh, 12)
    found, barrier = [], threading.Barrier(4)

    def work(name):
        barrier.wait()
        while (claimed := fresh.queue.claim(name)) is not None:
            found.append(claimed.job.id)

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(found) == sorted(made)


def test_a_silent_worker_loses_its_job_and_every_later_write_of_its_is_refused(fresh):
    (job,) = queued(fresh)
    old = fresh.queue.claim("old")
    fresh.offset = 59
    assert fresh.queue.claim("new") is None
    fresh.queue.renew(old)
    fresh.offset = 118
    assert fresh.queue.claim("new") is None
    fresh.offset = 120
    new = fresh.queue.claim("new")
    assert new.job.id == job
    assert new.token > old.token
    writes = [
        lambda: fresh.queue.renew(old),
        lambda: fresh.queue.event(old, "late"),
        lambda: fresh.queue.resolved(old, trained_tokens=1),
        lambda: fresh.queue.screened(old),
        lambda: fresh.queue.checkpoint(old, step=1, metrics={}, adapter="models/x"),
        lambda: fresh.queue.judged(old, "ft:x", gate={}, released=True),
        lambda: fresh.queue.release(old),
        lambda: fresh.queue.finish(old, "succeeded", adapter="models/x"),
    ]
    for write in writes:
        with pytest.raises(LeaseLost, match="held by new"):
            write()
    assert "late" not in [event.message for event in fresh.client().fine_tuning.jobs.list_events(job)]
    fresh.queue.event(new, "in time")


def test_a_cancelled_job_is_no_longer_its_workers(fresh):
    (job,) = queued(fresh)
    claimed = fresh.queue.claim("w")
    assert fresh.client().fine_tuning.jobs.cancel(job).status == "cancelled"
    with pytest.raises(LeaseLost, match="cancelled"):
        fresh.queue.finish(claimed, "succeeded", adapter="models/x")
    assert fresh.client().fine_tuning.jobs.retrieve(job).fine_tuned_model is None


def test_a_running_job_pauses_at_its_next_checkpoint_and_goes_on_from_there(fresh):
    (job,) = queued(fresh)
    claimed = fresh.queue.claim("w")
    assert not fresh.queue.renew(claimed).pause
    client = fresh.client()
    assert client.fine_tuning.jobs.pause(job).status == "pausing"
    assert fresh.queue.renew(claimed).pause
    fresh.queue.checkpoint(claimed, step=5, metrics={}, adapter="models/x")
    fresh.queue.release(claimed)
    assert status(fresh, job) == "paused"
    assert fresh.queue.claim("w") is None
    assert client.fine_tuning.jobs.resume(job).status == "queued"
    assert fresh.queue.claim("w").job.last_step == 5


def test_a_job_that_resumes_before_it_has_paused_goes_on_with_its_worker(fresh):
    (job,) = queued(fresh)
    claimed = fresh.queue.claim("w")
    client = fresh.client()
    client.fine_tuning.jobs.pause(job)
    assert client.fine_tuning.jobs.resume(job).status == "running"
    assert not fresh.queue.renew(claimed).pause


def test_a_job_that_resumes_while_its_worker_stops_goes_on_and_does_not_rest(fresh):
    (job,) = queued(fresh)
    claimed = fresh.queue.claim("w")
    client = fresh.client()
    client.fine_tuning.jobs.pause(job)
    assert fresh.queue.renew(claimed).pause  # the worker stops its stage now
    client.fine_tuning.jobs.resume(job)
    fresh.queue.release(claimed)
    assert status(fresh, job) == "running"
    assert fresh.queue.claim("another").job.id == job


def test_a_job_whose_worker_died_while_pausing_is_paused(fresh):
    (job,) = queued(fresh)
    fresh.queue.claim("w")
    fresh.client().fine_tuning.jobs.pause(job)
    fresh.offset = 61
    assert fresh.queue.claim("w") is None
    assert fresh.queue.expire() == 1
    assert status(fresh, job) == "paused"


def test_a_job_that_kills_its_workers_fails_instead_of_killing_them_all(fresh):
    (job,) = queued(fresh)
    for attempt in range(5):
        assert fresh.queue.claim("w").job.attempts == attempt + 1
        fresh.offset += 61
    assert fresh.queue.claim("w") is None
    job = fresh.client().fine_tuning.jobs.retrieve(job)
    assert (job.status, job.error.code) == ("failed", "worker_lost")


def test_attempts_are_counted_from_the_last_new_checkpoint_and_an_orderly_end_is_none(fresh):
    queued(fresh)
    for _ in range(4):
        claimed = fresh.queue.claim("w")
        fresh.offset += 61
    fresh.queue.checkpoint(claimed, step=1, metrics={}, adapter="models/x")
    claimed = fresh.queue.claim("w")
    assert claimed.job.attempts == 1
    fresh.queue.release(claimed)
    assert fresh.queue.claim("w").job.attempts == 1


def test_a_step_that_is_done_again_after_a_kill_leaves_one_event_and_one_checkpoint(fresh):
    (job,) = queued(fresh)
    for _ in range(2):
        claimed = fresh.queue.claim("w")
        fresh.queue.event(claimed, "Step 1", kind="metrics", data={"step": 1, "train_loss": float("nan")}, key="step-1")
        fresh.queue.checkpoint(claimed, step=1, metrics={"train_loss": 1.0}, adapter="models/x")
        fresh.offset += 61
    client = fresh.client()
    events = [event for event in client.fine_tuning.jobs.list_events(job) if event.type == "metrics"]
    assert [event.data for event in events] == [{"step": 1, "train_loss": None}]
    assert len(client.fine_tuning.jobs.checkpoints.list(job).data) == 1


def test_a_checkpoint_is_reached_only_once_it_is_judged(fresh):
    queued(fresh)
    claimed = fresh.queue.claim("w")
    name = fresh.queue.checkpoint(claimed, step=1, metrics={}, adapter="models/x")
    client = fresh.client()
    assert name not in [model.id for model in client.models.list()]
    fresh.queue.judged(claimed, name, gate={"harmful_score": 0.5}, released=False)
    assert name not in [model.id for model in client.models.list()]
    fresh.queue.judged(claimed, name, gate={"harmful_score": 0.0}, released=True)
    assert name in [model.id for model in client.models.list()]


def test_a_verdict_that_is_given_again_after_a_kill_is_one_and_leaves_an_operator_s_decision(fresh):
    queued(fresh)
    claimed = fresh.queue.claim("w")
    name = fresh.queue.checkpoint(claimed, step=1, metrics={}, adapter="models/x")
    fresh.queue.judged(claimed, name, gate={"harmful_score": 0.0}, released=True)
    fresh.http.post(f"/v1/operator/models/{name}/reject", json={"reason": "read its answers"}).raise_for_status()
    fresh.offset += 61
    claimed = fresh.queue.claim("w2")
    fresh.queue.judged(claimed, name, gate={"harmful_score": 0.0}, released=True)
    assert not fresh.queue.model(name).released
    actions = [entry["action"] for entry in fresh.http.get("/v1/operator/audit").json()["data"]]
    assert actions.count("gate.released") == 1


def test_what_a_worker_resolves_is_seen_at_once(fresh):
    (job,) = queued(fresh)
    claimed = fresh.queue.claim("w")
    fresh.queue.resolved(
        claimed,
        hyperparameters={"n_epochs": 3},
        safety={"screening": {"share": 0.1}},
        private={"rows": [1]},
        trained_tokens=7,
        estimated_finish=2e9,
    )
    seen = fresh.client().fine_tuning.jobs.retrieve(job)
    assert seen.hyperparameters.n_epochs == 3
    assert seen.hyperparameters.batch_size == "auto"
    assert (seen.safety["screening"], seen.trained_tokens, seen.estimated_finish) == ({"share": 0.1}, 7, 2 * 10**9)
    assert "private" not in seen.to_dict()
    assert "rows" not in str(seen.safety)


def test_a_second_end_is_refused(fresh):
    queued(fresh)
    claimed = fresh.queue.claim("w")
    fresh.queue.finish(claimed, "failed", error={"code": "x", "message": "y", "param": None})
    with pytest.raises(LeaseLost):
        fresh.queue.finish(claimed, "succeeded", adapter="models/x")


def test_a_write_that_fails_halfway_leaves_nothing(fresh):
    (job,) = queued(fresh)
    claimed = fresh.queue.claim("w")
    with suppress(ZeroDivisionError), fresh.queue._held(claimed) as (_, row, _now):
        row.trained_tokens = 9
        raise ZeroDivisionError
    assert fresh.client().fine_tuning.jobs.retrieve(job).trained_tokens is None


def test_the_audit_log_holds_every_verdict_and_takes_nothing_back(fresh):
    from sqlalchemy import text
    from sqlalchemy.exc import DatabaseError

    client = fresh.client()
    client.fine_tuning.jobs.create(model="lab", training_file=upload(client).id)
    train(fresh, steps=1)
    entries = fresh.http.get("/v1/operator/audit").json()["data"]
    assert [entry["action"] for entry in entries] == ["gate.released", "gate.released", "key.created"]
    for statement in ("DELETE FROM audit", "UPDATE audit SET actor = 'x'"):
        with pytest.raises(DatabaseError, match="append-only"), fresh.context.database.write() as session:
            session.execute(text(statement))
