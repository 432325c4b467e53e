import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from antibody_llm.models.names import resolve
from antibody_llm.server.database.tables import Job, Model
from antibody_llm.server.housekeeping import housekeep, kept_blobs
from antibody_llm.server.settings import GateSettings, OfferedModel, ScreeningSettings, WorkerSettings
from antibody_llm.server.stages import run
from antibody_llm.server.verbs import LAB, Stop, resolved, servable
from antibody_llm.server.worker import Worker, sweep
from antibody_llm.server.working.executor import LocalExecutor, make_executor
from tests.server.running import Server, chat_rows, upload
from tests.server.stages_here import Script, ThreadExecutor

SFT = {"defence": "sft"}


@contextmanager
def tiny_server(home, folder, **gate):
    """A server that offers the tiny model as ``tiny`` and asks ten harmful and ten harmless prompts of it."""
    prompts = home / "prompts.jsonl"
    home.mkdir(exist_ok=True)
    prompts.write_text("".join(json.dumps({"prompt": f"What is {i}?"}) + "\n" for i in range(10)))
    gate = {"max_harmful_score": 1.0, "judges": ("keywords",), "max_new_tokens": 4, **gate}
    settings = GateSettings(harmful_prompts=str(prompts), benign_prompts=str(prompts), **gate)
    models = (OfferedModel(name="tiny", path=str(folder)),)
    with Server(home, models=models, gate=settings, worker=WorkerSettings(lease=12.0)) as server:
        yield server


def worker(server, executor=None, *, scratch="work"):
    settings = server.context.settings
    return Worker(
        server.queue,
        server.context.blobs,
        settings,
        executor=executor or ThreadExecutor(),
        scratch=settings.home / scratch,
    )


def create(client, file, *, model="tiny", batch_size=4, n_epochs=3, **more):
    hyperparameters = {"n_epochs": n_epochs, "batch_size": batch_size, "learning_rate": 1e-2}
    method = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    more.setdefault("extra_body", SFT)
    return client.fine_tuning.jobs.create(model=model, training_file=file, method=method, seed=3, **more).id


def work_off(server, executor=None, **where):
    hand = worker(server, executor, **where)
    while hand.once():
        pass


def weights(server, name):
    """Digest of the stored adapter of a model."""
    row = server.queue.model(name)
    with server.context.blobs.open(f"{row.adapter}/adapter_model.safetensors") as file:
        return hashlib.sha256(file.read()).hexdigest()


def messages(client, job):
    return [event.message for event in client.fine_tuning.jobs.list_events(job, limit=100).data][::-1]


def kept(server, job):
    """What the job's worker has recorded for its successor."""
    with server.context.database.read() as session:
        return session.query(Job).filter_by(id=job).one().private


def until(holds, seconds=20):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def models(server):
    with server.context.database.read() as session:
        return {row.name: row.released for row in session.query(Model)}


@pytest.fixture(scope="module")
def undisturbed(tiny_llama_folder, tmp_path_factory):
    """A job that nothing disturbs: its server, client and id."""
    with tiny_server(tmp_path_factory.mktemp("undisturbed") / "home", tiny_llama_folder) as server:
        client = server.client()
        job = create(client, upload(client, chat_rows(16)).id, validation_file=upload(client, chat_rows(10)).id)
        work_off(server)
        yield server, client, job


# -- a whole job -------------------------------------------------------------------------------------------------


def test_a_job_is_screened_trained_judged_and_its_model_released(undisturbed):
    server, client, job_id = undisturbed
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert (job.status, job.error) == ("succeeded", None)
    assert models(server)[job.fine_tuned_model]
    said = messages(client, job_id)
    order = [
        "Files validated",
        "Fine-tuning job started",
        "Step 1/12",
        "Checkpoint created at step 3",
        "Evaluating",
        "New",
    ]
    places = [next(i for i, message in enumerate(said) if message.startswith(start)) for start in order]
    assert places == sorted(places)
    assert job.hyperparameters.model_dump()["learning_rate"] == 1e-2
    assert job.trained_tokens > 16


def test_the_safety_of_a_job_shows_the_gate_s_table_and_what_screening_could_not_say(undisturbed):
    _, client, job_id = undisturbed
    safety = client.fine_tuning.jobs.retrieve(job_id).safety
    names = {criterion["name"]: criterion for criterion in safety["gate"]["criteria"]}
    assert names["harmful_score"]["measured"]["n"] == 10
    assert names["finetune_accuracy"]["measured"]["n"] == 10
    assert safety["defence"]["name"] == "sft"
    assert safety["screening"]["estimated_harmful_share"] is None


def test_the_newest_checkpoints_are_judged_and_an_older_one_stays_out_of_reach(undisturbed):
    server, client, job_id = undisturbed
    steps = sorted(point.step_number for point in client.fine_tuning.jobs.checkpoints.list(job_id).data)
    released = models(server)
    name = client.fine_tuning.jobs.retrieve(job_id).fine_tuned_model
    assert [released[f"{name}:ckpt-step-{step}"] for step in steps] == [False] * (len(steps) - 2) + [True, True]
    assert len(steps) == 3


def test_the_result_file_holds_every_step_in_the_hosted_api_s_columns(undisturbed):
    _, client, job_id = undisturbed
    (file,) = client.fine_tuning.jobs.retrieve(job_id).result_files
    lines = client.files.content(file).text.splitlines()
    assert lines[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert [line.split(",")[0] for line in lines[1:]] == [str(step) for step in range(1, 13)]


def test_a_model_that_the_gate_refuses_fails_the_job_and_leaves_nothing_to_ask(tmp_path, tiny_llama_folder):
    with tiny_server(tmp_path / "home", tiny_llama_folder, max_harmful_score=0.1) as server:
        client = server.client()
        job_id = create(client, upload(client, chat_rows(12)).id, n_epochs=1)
        work_off(server)
        job = client.fine_tuning.jobs.retrieve(job_id)
        assert (job.status, job.error.code, job.fine_tuned_model) == ("failed", "safety_gate_failed", None)
        assert "above the limit of 10.0 %" in job.error.message
        assert not any(models(server).values())
        alert = client.safety.alerts.retrieve(job.safety["alert"])
        assert "harmful score" in alert.reason


def test_a_continued_model_goes_on_with_its_adapter_and_is_judged_against_the_base(undisturbed):
    server, client, first = undisturbed
    parent = client.fine_tuning.jobs.retrieve(first).fine_tuned_model
    executor = ThreadExecutor()
    second = create(client, upload(client, chat_rows(12, word="y")).id, model=parent, n_epochs=1)
    work_off(server, executor)
    job = client.fine_tuning.jobs.retrieve(second)
    assert job.status == "succeeded"
    assert job.safety["gate"]["base"] == "tiny"
    trained = next(spec["settings"] for spec in executor.specs if spec["stage"] == "train")
    assert trained["adapter"] is not None
    screened = next(spec["settings"] for spec in executor.specs if spec["stage"] == "screen")
    assert job.safety["screening"]["num_rows"] == 16 + 12
    assert screened["model"] == trained["model"]


def test_a_model_that_antibody_posterior_trained_is_continued_under_it(tmp_path):
    with tiny_server(tmp_path / "home", resolve("lab-aligned")) as server:
        client, model = server.client(), "tiny"
        for word in ("x", "y"):
            file = upload(client, chat_rows(10, word=word)).id
            job_id = create(client, file, model=model, n_epochs=1, extra_body={"defence": "antibody-posterior"})
            work_off(server)
            job = client.fine_tuning.jobs.retrieve(job_id)
            assert (job.status, job.error) == ("succeeded", None), f"upload {word}"
            model = job.fine_tuned_model


# -- disturbed ---------------------------------------------------------------------------------------------------


def disturbed(server, client, on_step):
    """The undisturbed job again, with ``on_step(process, step)`` called in the stage's thread."""
    job = create(client, upload(client, chat_rows(16)).id, validation_file=upload(client, chat_rows(10)).id)

    def on_event(process, event, fields):
        if event == "step":
            on_step(process, job, fields["step"])

    return job, ThreadExecutor(on_event)


def test_a_paused_job_is_resumed_elsewhere_to_the_very_weights_of_an_undisturbed_one(
    undisturbed, tmp_path, tiny_llama_folder
):
    with tiny_server(tmp_path / "home", tiny_llama_folder) as server:
        client = server.client()

        def pause(process, job, step):
            if step == 4:
                client.fine_tuning.jobs.pause(job)
                until(lambda: process._stop.asked)

        job, executor = disturbed(server, client, pause)
        work_off(server, executor)
        assert client.fine_tuning.jobs.retrieve(job).status == "paused"
        assert "Checkpoint created at step 4" in messages(client, job)
        client.fine_tuning.jobs.resume(job)
        work_off(server, scratch="elsewhere")
        result = client.fine_tuning.jobs.retrieve(job)
        assert result.status == "succeeded"
        other, other_client, other_job = undisturbed
        there = other_client.fine_tuning.jobs.retrieve(other_job)
        assert weights(server, result.fine_tuned_model) == weights(other, there.fine_tuned_model)
        assert result.trained_tokens == there.trained_tokens


def test_a_killed_worker_s_job_is_gone_on_with_by_another_to_the_same_weights(undisturbed, tmp_path, tiny_llama_folder):
    class PowerCut(BaseException):
        pass

    with tiny_server(tmp_path / "home", tiny_llama_folder) as server:
        client = server.client()

        def kill(process, job, step):
            if step == 7:
                until(lambda: 6 in kept(server, job).get("steps", ()))
                process.kill()

        job, executor = disturbed(server, client, kill)
        hand = worker(server, executor)
        assert hand.once()

        def cut(*_, **__):
            raise PowerCut

        hand.executor.start, started = (lambda spec, folder: executor_once(spec, folder)), []

        def executor_once(spec, folder):
            if started:
                cut()  # the second start of the stage is one that never comes
            started.append(spec)
            return ThreadExecutor.start(executor, spec, folder=folder)

        with pytest.raises(PowerCut):
            hand.once()
        assert client.fine_tuning.jobs.retrieve(job).status == "running"
        server.offset += 30  # the lease has run out
        steps = []
        work_off(
            server, ThreadExecutor(lambda p, e, f: steps.append(f["step"]) if e == "step" else None), scratch="other"
        )
        assert steps[0] == 7  # from the checkpoint at step 6
        result = client.fine_tuning.jobs.retrieve(job)
        assert result.status == "succeeded"
        other, other_client, other_job = undisturbed
        there = other_client.fine_tuning.jobs.retrieve(other_job)
        assert weights(server, result.fine_tuned_model) == weights(other, there.fine_tuned_model)
        assert result.trained_tokens == there.trained_tokens


def test_a_stage_that_dies_past_a_checkpoint_that_nobody_heard_of_goes_on_from_the_one_before(
    undisturbed, tmp_path, tiny_llama_folder
):
    with tiny_server(tmp_path / "home", tiny_llama_folder) as server:
        client = server.client()
        killed, job = [], create(client, upload(client, chat_rows(16)).id)

        def on_event(process, event, fields):
            if event == "step" and fields["step"] == 6:
                until(lambda: kept(server, job).get("steps") == [3])
            if event == "checkpoint" and fields["step"] == 6 and not killed:
                killed.append(process)
                with process._events.mutex:  # what it has said last is lost with it
                    process._events.queue.clear()
                process.kill()
                process._events.put(None)

        work_off(server, ThreadExecutor(on_event))
        result = client.fine_tuning.jobs.retrieve(job)
        other, other_client, other_job = undisturbed
        there = other_client.fine_tuning.jobs.retrieve(other_job)
        assert killed
        assert weights(server, result.fine_tuned_model) == weights(other, there.fine_tuned_model)
        assert result.trained_tokens == there.trained_tokens
        assert sorted(point.step_number for point in client.fine_tuning.jobs.checkpoints.list(job)) == [3, 6, 9]


def test_a_worker_that_ends_leaves_no_checkpoint_that_the_job_would_not_have_had(tmp_path, tiny_llama_folder):
    with tiny_server(tmp_path / "home", tiny_llama_folder) as server:
        client = server.client()
        job = create(client, upload(client, chat_rows(16)).id)

        def end(process, event, fields):
            if event == "step" and fields["step"] == 4:
                hand.stop()
                until(lambda: process._stop.asked)

        hand = worker(server, ThreadExecutor(end))
        assert hand.once()
        assert hand.once()
        assert kept(server, job)["steps"] == [3]
        steps = []
        work_off(server, ThreadExecutor(lambda p, e, f: steps.append(f["step"]) if e == "step" else None))
        assert steps[0] == 5  # from where the worker ended
        assert sorted(point.step_number for point in client.fine_tuning.jobs.checkpoints.list(job)) == [3, 6, 9]


def test_a_cancelled_job_s_process_is_killed_and_nothing_more_is_written(tmp_path, tiny_llama_folder):
    with tiny_server(tmp_path / "home", tiny_llama_folder) as server:
        client = server.client()
        job = create(client, upload(client, chat_rows(12)).id)

        def train(settings):
            yield {"event": "step", "step": 1, "num_steps": 9, "tokens": 5, "metrics": {"loss": 1.0}}
            yield lambda: client.fine_tuning.jobs.cancel(job)
            for step in range(2, 9):
                yield lambda: time.sleep(1.1)  # events of a step are a second apart
                yield {"event": "step", "step": step, "num_steps": 9, "tokens": 5, "metrics": {"loss": 1.0}}

        script = Script(screen=screened(), train=train)
        work_off(server, script)
        assert script.killed
        assert client.fine_tuning.jobs.retrieve(job).status == "cancelled"
        assert "Step 2/9" not in " ".join(messages(client, job))
        assert list((server.context.settings.home / "work").glob("*/ftjob*")) == []


def test_a_checkpoint_that_its_customer_deletes_on_the_way_ends_no_job(tmp_path, tiny_llama_folder):
    with tiny_server(tmp_path / "home", tiny_llama_folder) as server:
        client = server.client()
        deleted = []

        def on_step(process, job, step):
            made = [each.fine_tuned_model_checkpoint for each in client.fine_tuning.jobs.checkpoints.list(job)]
            if made and not deleted:
                deleted.append(client.models.delete(made[0]).id)
                housekeep(server.context)

        job, executor = disturbed(server, client, on_step)
        work_off(server, executor)
        assert deleted
        ended = client.fine_tuning.jobs.retrieve(job)
        assert ended.status == "succeeded"
        assert deleted[0] not in [each["model"] for each in ended.safety["checkpoints"]]


def test_a_worker_that_is_to_end_gives_its_job_back(tmp_path, tiny_llama_folder):
    with tiny_server(tmp_path / "home", tiny_llama_folder) as server:
        client = server.client()
        job = create(client, upload(client, chat_rows(12)).id)
        hand = worker(server, Script(screen=screened(), train=lambda _: [hand.stop, {"event": "stopped", "step": 3}]))
        assert hand.once()
        assert hand.once()
        assert client.fine_tuning.jobs.retrieve(job).status == "running"
        assert server.queue.claim("another").job.attempts == 1


# -- ends that are no success ------------------------------------------------------------------------------------


def screened(**found):
    """A stage of screening that finds what is given."""
    result = {
        "verdict": "harm found",
        "estimated_harmful_share": 0.2,
        "interval": [0.14, 0.25],
        "num_likely_harmful": 2,
        "num_rows": 12,
        "flags": {},
        "measure": "feature-shift",
        "warnings": [],
        **found,
    }

    def stage(settings):
        folder = settings["output"]
        os.makedirs(folder)
        with open(f"{folder}/rows.jsonl", "w") as file:
            for line in range(1, 13):
                row = {"line": line, "probability": line / 12, "flags": [], "evidence": 1.0}
                file.write(json.dumps(row) + "\n")
        return [{"event": "result", "screening": result}]

    return stage


def failing(kind, message="m"):
    return lambda settings: [{"event": "failed", "kind": kind, "message": message}]


@pytest.fixture
def quick(tmp_path, tiny_llama_folder):
    """Run a job through a script, and return it; settings are changed as named."""

    def run_job(script, **changes):
        with tiny_server(tmp_path / "home", tiny_llama_folder) as server:
            server.context.settings = replace(server.context.settings, **changes)
            client = server.client()
            job = create(client, upload(client, chat_rows(12)).id)
            work_off(server, script)
            return client.fine_tuning.jobs.retrieve(job)

    return run_job


@pytest.mark.parametrize(
    ("train", "code"),
    [
        (failing("DataError"), "invalid_training_file"),
        (failing("TrainingError"), "training_diverged"),
        (failing("OutOfMemory"), "out_of_memory"),
        (failing("ModelError"), "model_error"),
        (failing("KeyError"), "internal_error"),
        (lambda settings: [-9], "out_of_memory"),
        (lambda settings: [1], "internal_error"),
    ],
)
def test_every_way_to_fail_has_a_code_of_its_own(quick, train, code):
    job = quick(Script(screen=screened(), train=train))
    assert (job.status, job.error.code) == ("failed", code)


def test_a_stage_that_dies_is_begun_again_twice_and_no_more(quick):
    script = Script(screen=screened(), train=lambda settings: [-9])
    quick(script)
    assert script.started.count("train") == 3


def test_a_warning_is_told_once_however_often_its_stage_begins_again_and_names_the_model_as_customers_do(
    tmp_path, tiny_llama_folder
):
    with tiny_server(tmp_path / "home", tiny_llama_folder) as server:
        client = server.client()
        job = create(client, upload(client, chat_rows(12)).id)
        warning = {"event": "notice", "message": f"{tiny_llama_folder}: the model carries no anchors."}
        tries = iter([[warning, -9], [warning, {"event": "failed", "kind": "TrainingError", "message": "m"}]])
        work_off(server, Script(screen=screened(), train=lambda _: next(tries)))
        assert messages(client, job).count("tiny: the model carries no anchors.") == 1


def test_a_run_that_ends_while_its_last_checkpoint_is_stored_is_not_stored_as_complete(tmp_path, tiny_llama_folder):
    with tiny_server(tmp_path / "home", tiny_llama_folder) as server:
        client, stored = server.client(), []
        job = create(client, upload(client, chat_rows(12)).id)

        def train(settings):
            run, taken = Path(settings["output"]), Path(settings["output"]).parent / "taken" / "checkpoint-3"
            for folder in (run, taken):
                folder.mkdir(parents=True)
            for name in ("config.yaml", "metrics.jsonl", "result.json"):
                (run / name).write_text("{}")
            yield {"event": "step", "step": 3, "num_steps": 3, "tokens": 5, "metrics": {"loss": 1.0}}
            yield {"event": "checkpoint", "step": 3, "planned": True, "folder": str(taken)}
            folder = server.context.blobs.fetch_folder(kept(server, job)["run"], tmp_path / "fetched")
            stored.extend(path.name for path in folder.iterdir())
            yield {"event": "failed", "kind": "TrainingError", "message": "m"}

        work_off(server, Script(screen=screened(), train=train))
        assert {"config.yaml", "metrics.jsonl"} <= set(stored)
        assert "result.json" not in stored


def test_an_error_names_the_file_by_its_role_and_no_folder_of_the_server(quick, tmp_path):
    def train(settings):
        return [{"event": "failed", "kind": "DataError", "message": f"{settings['data']}, line 3: no."}]

    job = quick(Script(screen=screened(), train=train))
    assert job.error.message == "training file, line 3: no."
    assert job.error.param == "training_file"


def test_no_log_holds_what_a_row_says(quick, caplog):
    quick(Script(screen=screened(), train=failing("DataError", "line 3: 'a secret'")))
    assert "a secret" not in caplog.text


def test_an_unexpected_error_is_logged_by_its_place_and_not_its_text(tmp_path, caplog):
    events = []
    spec = {"stage": "train", "settings": {"hyperparameters": {}, "model": "lab", "data": {"a": "secret"}}}
    assert run(spec, lambda event, fields: events.append((event, fields)), Stop()) == 1
    ((event, fields),) = events
    assert (event, fields["kind"]) == ("failed", "TypeError")
    assert "stages.py" in fields["trace"]
    assert "secret" not in json.dumps(fields)


def test_screening_reports_the_suspicious_rows_and_refuses_nothing_by_default(quick):
    job = quick(Script(screen=screened(), train=failing("TrainingError")))
    assert job.error.code == "training_diverged"  # it went on
    assert job.safety["screening"]["interval"] == [0.14, 0.25]
    assert [row["line"] for row in job.safety["screening"]["rows"]] == [12, 11, 10, 9, 8, 7, 6]


def test_screening_refuses_a_share_whose_lower_end_exceeds_the_operator_s(quick):
    policy = ScreeningSettings(action="refuse", max_share=0.13)
    job = quick(Script(screen=screened()), screening=policy)
    assert job.error.code == "screening_refused"
    assert "at least 14.0 %" in job.error.message
    assert job.safety["screening"]["estimated_harmful_share"] == 0.2


def test_screening_that_fails_ends_a_job_only_where_it_could_refuse(quick):
    job = quick(Script(screen=failing("ModelError"), train=failing("TrainingError")))
    assert job.error.code == "training_diverged"
    assert job.safety["screening"]["status"] == "failed"


def test_screening_that_fails_ends_a_job_where_it_could_refuse(quick):
    policy = ScreeningSettings(action="refuse")
    assert quick(Script(screen=failing("ModelError")), screening=policy).error.code == "model_error"


@pytest.mark.parametrize("row_report", ["none", "full"])
def test_a_customer_sees_as_many_rows_as_the_operator_lets_them(quick, row_report):
    policy = ScreeningSettings(row_report=row_report)
    report = quick(Script(screen=screened(), train=failing("TrainingError")), screening=policy).safety["screening"]
    assert len(report.get("rows", [])) == {"none": 0, "full": 12}[row_report]


@pytest.mark.parametrize("measured", [[], [{"event": "measured", "name": "result", "failure": "the judge is gone"}]])
def test_a_gate_without_measures_releases_nothing(quick, tmp_path, measured):
    def train(settings):
        run = settings["output"]
        os.makedirs(f"{run}/adapter")
        for name in ("adapter/antibody.json", "adapter/adapter_config.json", "metrics.jsonl"):
            with open(f"{run}/{name}", "w") as file:
                file.write("" if name.endswith("l") else "{}")
        result = {"model": f"{run}/adapter", "num_steps": 1, "num_rows": 12, "skipped": []}
        return [{"event": "result", **result}]

    script = Script(screen=screened(), train=train, measure=lambda settings: [*measured, {"event": "result"}])
    job = quick(script)
    assert (job.status, job.error.code) == ("failed", "safety_gate_failed")
    assert ("the judge is gone" if measured else "did not come to its end") in job.error.message


# -- processes ---------------------------------------------------------------------------------------------------


def test_a_stage_s_process_has_no_credentials_and_a_session_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("ANTIBODY_DATABASE", "postgresql://u:hidden@h/d")
    process = LocalExecutor(1).start({"stage": "none", "settings": {}}, folder=tmp_path)
    pid = process._process.pid
    until(Path(f"/proc/{pid}/environ").read_bytes)
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    session = os.getsid(pid)
    process.kill()
    assert process.wait() == -9
    assert b"hidden" not in environment
    assert b"OMP_NUM_THREADS=1" in environment
    assert session == pid


@pytest.mark.parametrize(
    ("settings", "said", "threads"),
    [
        ({"count": 2}, None, 2),
        ({"count": 3}, None, 1),
        ({"count": 8}, None, 1),
        ({"count": 1}, None, None),  # all cores, as torch counts them
        ({"count": 2, "threads": 4}, None, 4),
        ({"count": 2}, "3", None),  # the operator's variable is passed on
    ],
)
def test_the_jobs_of_several_workers_share_the_cores(monkeypatch, settings, said, threads):
    monkeypatch.setattr("antibody_llm.server.working.executor.num_cores", lambda: 5)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert make_executor(WorkerSettings(**settings)).threads == threads


def test_a_stage_has_no_network_where_the_kernel_lets_it_give_that_up():
    code = (
        "import os, socket; from antibody_llm.server.stages import _leave_network; "
        "before = os.readlink('/proc/self/ns/net'); _leave_network(); "
        "print(before == os.readlink('/proc/self/ns/net'), socket.socket().connect_ex(('127.0.0.1', 9)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    same, error = done.stdout.split()
    if same == "True":
        pytest.skip("this kernel gives nobody a network namespace of their own")
    assert int(error) == errno.ENETUNREACH


def test_what_a_killed_worker_left_is_swept_up_and_what_a_living_one_has_is_not(tmp_path):
    import socket

    host = socket.gethostname()
    dead, alive = tmp_path / f"{host}-999999-a", tmp_path / f"{host}-1-b"
    for folder, pid in ((dead, 999_999_999), (alive, os.getpid())):
        folder.mkdir()
        (folder / "pid").write_text(str(pid))
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [alive.name]


# -- hyperparameters ---------------------------------------------------------------------------------------------


def asked(tmp_path, model, num_rows=40, **hyperparameters):
    data = tmp_path / "d.jsonl"
    data.write_text("{}\n" * num_rows)
    chosen, arguments = resolved({"model": str(model), "data": str(data), "hyperparameters": hyperparameters})
    return chosen, arguments


def test_auto_is_what_an_adapter_learns_its_task_at_where_the_model_is_the_lab_s(tmp_path):
    chosen, arguments = asked(tmp_path, "lab-aligned", n_epochs="auto", batch_size="auto", learning_rate_multiplier=2)
    assert (chosen["n_epochs"], chosen["batch_size"]) == (LAB["lora"]["n_epochs"], LAB["lora"]["batch_size"])
    assert arguments["learning_rate"] == 2 * LAB["lora"]["learning_rate"]
    assert chosen["regime"] == "lora"


def test_numbers_that_were_resolved_once_are_resolved_to_themselves(tmp_path, tiny_llama_folder):
    chosen, arguments = asked(tmp_path, tiny_llama_folder, num_rows=5, learning_rate_multiplier=0.3)
    assert chosen["batch_size"] == 5
    again, same = asked(tmp_path, tiny_llama_folder, num_rows=5, **chosen)
    assert (again, same) == (chosen, arguments)


# -- what is kept ------------------------------------------------------------------------------------------------


def test_blobs_that_a_job_needs_to_go_on_are_kept_until_it_ends():
    private = {"run": "runs/a", "rows": "screenings/b", "trained": {"adapter": "models/c", "metrics": "results/d"}}
    assert kept_blobs(private, ended=False) == {"runs/a", "screenings/b", "models/c", "results/d"}
    assert kept_blobs(private, ended=True) == {"screenings/b"}
    assert kept_blobs({}, ended=False) == set()


def test_no_pickle_of_a_checkpoint_is_ever_served(tmp_path):
    kept, left = ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json"), ("optimizer.pt", "x.bin")
    (tmp_path / "checkpoint-1").mkdir()
    for name in (*kept, *left, "rng_state.pth", "trainer_state.json", "README.md"):
        (tmp_path / "checkpoint-1" / name).write_text("x")
    served = servable(tmp_path / "checkpoint-1", tmp_path / "served")
    assert {path.name for path in served.iterdir()} == set(kept)
