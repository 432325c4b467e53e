"""Stages on a Ray cluster: one real cluster of this machine, and its places without one."""

import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from antibody_llm.errors import ConfigError
from antibody_llm.server.settings import WorkerSettings
from antibody_llm.server.working import cluster
from antibody_llm.server.working.cluster import NODE, Place, PlaceLost, RayExecutor, RayProcess, lacking
from antibody_llm.server.working.executor import LocalExecutor, make_executor
from tests.server.running import chat_rows, upload
from tests.server.stages_here import ThreadExecutor
from tests.server.test_worker import create, messages, tiny_server, weights, work_off


@pytest.fixture(scope="module")
def ray():
    """A cluster of this machine with two processors."""
    try:
        import ray
    except ImportError as missing:
        if os.environ.get("CI"):
            pytest.fail(f"Ray is not installed, and CI needs it: pip install 'antibody-llm[ray]' ({missing})")
        pytest.skip("Ray is not installed: pip install 'antibody-llm[ray]'")
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_enable_worker_prestart": "0"}
    before = dict(os.environ)
    os.environ.update(settings)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    yield ray
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


class OnRay:
    """Trains on the cluster, where the place of the training is killed at its first checkpoint; the rest runs here."""

    def __init__(self, ray):
        self.ray, self.here, self.there = ray, ThreadExecutor(), RayExecutor("auto", cpus=1, silence=20.0)
        self.begun = 0

    def start(self, spec, *, folder):
        if spec["stage"] != "train":
            return self.here.start(spec, folder=folder)
        process = self.there.start(spec, folder=folder)
        events, self.folder = process.events, folder

        def killed_once():
            for event in events():
                self.begun += event["event"] == "resolved"
                yield event
                if event["event"] == "checkpoint" and self.begun == 1:
                    os.kill(self.parent_of_the_stage(), signal.SIGKILL)

        process.events = killed_once
        return process

    def parent_of_the_stage(self):
        for folder in os.listdir("/proc"):
            try:
                if os.readlink(f"/proc/{folder}/cwd") == str(self.folder):
                    stat = Path(f"/proc/{folder}/stat").read_text()
                    return int(stat.rpartition(")")[2].split()[1])
            except OSError:
                continue
        raise AssertionError("no process of the stage is there")


def test_a_job_whose_ray_worker_is_killed_ends_with_the_weights_of_an_undisturbed_one(ray, tiny_llama_folder, tmp_path):
    with tiny_server(tmp_path / "home", tiny_llama_folder) as server:
        client = server.client()
        rows = upload(client, chat_rows(16)).id
        here = create(client, rows)
        work_off(server)
        there = create(client, rows)
        executor = OnRay(ray)
        work_off(server, executor)
        jobs = [client.fine_tuning.jobs.retrieve(job) for job in (here, there)]
        assert [job.status for job in jobs] == ["succeeded", "succeeded"]
        assert executor.begun == 2, "Ray has begun it again, once"
        assert weights(server, jobs[1].fine_tuned_model) == weights(server, jobs[0].fine_tuned_model)
        assert "Step 12/12" in " ".join(messages(client, there))


# -- the operator's choice ---------------------------------------------------------------------------------------------


def test_stages_run_here_where_nothing_else_is_said():
    assert isinstance(make_executor(WorkerSettings()), LocalExecutor)


@pytest.mark.parametrize("executor", ["ray", "ray://", "ray://host", "slurm", "ray://a b:1", ""])
def test_an_executor_that_there_is_not_is_refused_with_those_that_there_are(executor):
    with pytest.raises(ConfigError, match="local, ray://auto"):
        WorkerSettings(executor=executor)


def test_gpus_are_counted_on_a_cluster_alone():
    assert WorkerSettings(executor="ray://auto", gpus=0.5).gpus == 0.5
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES"):
        WorkerSettings(gpus=1)


def test_a_cluster_that_does_not_answer_is_a_fault_of_the_settings(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ConfigError, match="no Ray cluster answers at 127.0.0.1:1 .*ray start"):
        make_executor(WorkerSettings(executor="ray://127.0.0.1:1"))


def test_the_check_says_what_no_node_of_the_cluster_has(monkeypatch):
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}}, {"Alive": False, "Resources": {"GPU": 8.0}}]
    ended = []
    there = SimpleNamespace(nodes=lambda: nodes, shutdown=lambda: ended.append(True))
    monkeypatch.setattr(cluster, "connected", lambda address: there)
    assert lacking(WorkerSettings(executor="ray://auto", gpus=1, threads=4)) == []
    (problem,) = lacking(WorkerSettings(executor="ray://auto", gpus=2))
    assert "(1 CPU, 2 GPU)" in problem
    assert len(ended) == 2


# -- a place, without a cluster ----------------------------------------------------------------------------------------


class Stage:
    """A process whose events a test gives it."""

    def __init__(self):
        self.given, self.ended, self.stopped, self.killed = [], threading.Event(), 0, False
        self.folder = None

    def start(self, spec, *, folder):
        self.folder = folder
        return self

    def events(self):
        yield from self.given
        self.ended.wait(10)

    def stop(self):
        self.stopped += 1
        self.ended.set()

    def kill(self):
        self.killed = True
        self.ended.set()

    def wait(self):
        return -9 if self.killed else 0


def place(folder, stage, *, silence=30.0, node="a"):
    return Place({"stage": "train"}, str(folder), None, silence, executor=stage, node=node)


def test_a_place_gives_each_event_once_and_all_of_them_to_whoever_heard_another_place(tmp_path):
    stage = Stage()
    stage.given = [{"event": "step", "step": 1}, {"event": "step", "step": 2}]
    here = place(tmp_path, stage)
    stage.ended.set()
    while here.poll(here.life, 2, False)[2] is None:
        pass
    assert here.poll(here.life, 1, False)[1] == stage.given[1:]
    assert here.poll("another", 2, False) == (here.life, stage.given, 0)


def test_a_place_stops_its_stage_once_however_often_it_is_asked_to(tmp_path):
    stage = Stage()
    here = place(tmp_path, stage)
    for _ in range(3):
        here.poll("", 0, True)
    assert stage.stopped == 1


def test_a_place_that_nobody_asks_kills_its_stage(tmp_path):
    stage = Stage()
    here = place(tmp_path, stage, silence=0.2)
    until = time.monotonic() + 5
    while not stage.killed:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert here.poll(here.life, 0, False)[2] == -9


def test_a_place_on_another_node_begins_when_the_former_must_have_ended(tmp_path):
    place(tmp_path, Stage(), node="a", silence=0.2)
    assert (tmp_path / NODE).read_text() == "a"
    started = time.monotonic()
    place(tmp_path, Stage(), node="a", silence=0.2)
    assert time.monotonic() - started < 0.2
    place(tmp_path, Stage(), node="b", silence=0.2)
    assert time.monotonic() - started >= 0.4
    assert (tmp_path / NODE).read_text() == "b"


def test_a_folder_that_the_node_does_not_see_is_the_operators_to_share(tmp_path):
    stage = Stage()
    _, events, status = place(tmp_path / "elsewhere", stage).poll("", 0, False)
    assert stage.folder is None
    assert status == 1
    assert events[0]["kind"] == "OutputError"
    assert "every node of the cluster share" in events[0]["message"]


# -- a process, without a cluster --------------------------------------------------------------------------------------


class Cluster:
    """Answers of a place, one after the other; None: none yet."""

    silence, needs = 0.05, "num_cpus=1"

    def __init__(self, *answers):
        self.answers, self.ended, self.asked = list(answers), 0, []

    def process(self):
        ask = SimpleNamespace(remote=lambda *arguments: self.asked.append(arguments))
        return RayProcess(self, SimpleNamespace(poll=ask))

    def answer(self, reference, seconds):
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self, place):
        self.ended += 1


def test_events_of_a_restarted_place_follow_those_of_the_lost_one_and_the_place_is_given_back():
    cluster = Cluster(("a", [{"n": 1}, {"n": 2}], None), None, ("b", [{"n": 2}], None), ("b", [{"n": 3}], 0))
    process = cluster.process()
    assert [event["n"] for event in process.events()] == [1, 2, 2, 3]
    assert [asked[:2] for asked in cluster.asked] == [("", 0), ("a", 2), ("b", 1)]
    assert process.wait() == 0
    assert cluster.ended == 1


def test_a_place_that_is_lost_for_good_reads_as_a_killed_process():
    process = Cluster(("a", [{"n": 1}], None), PlaceLost("the node died")).process()
    assert [event["n"] for event in process.events()] == [1]
    assert process.wait() == -9


def test_a_stage_that_has_no_place_yet_stops_at_once():
    cluster = Cluster()
    process = cluster.process()
    process.stop()
    assert [event["event"] for event in process.events()] == ["stopped"]
    assert cluster.ended == 1


def test_a_stage_that_waits_long_for_a_place_is_in_the_operators_log(caplog, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 0)
    process = Cluster(*[None] * 3, ("a", [], 0)).process()
    process._heard -= 1
    assert list(process.events()) == []
    assert [record.getMessage() for record in caplog.records] == [
        "a stage waits for a place on the Ray cluster (num_cpus=1)"
    ]
