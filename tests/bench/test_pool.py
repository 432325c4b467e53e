"""The order of jobs and the pools that do them, with jobs that do nothing."""

import os
import re
import signal
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from benchmarks.clusters import ray_cluster

from antibody_llm.bench.pools.local import LocalPool
from antibody_llm.bench.pools.pool import Ended, carried_out
from antibody_llm.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
NEEDS = {"cell": "alignment", "repair": "cell"}


class Inline:
    """A pool that does what it is given at once, and notes how much it was given."""

    capacity = 3

    def __init__(self, fails=()):
        self.fails, self.here, self.most, self.done, self.closed = fails, [], 0, [], False

    def submit(self, job):
        self.here.append(job)
        self.most = max(self.most, len(self.here))

    def wait(self):
        job = self.here.pop(0)
        self.done.append(job)
        return [Ended(job, error=OSError("full")) if job in self.fails else Ended(job, job.upper())]

    def close(self):
        self.closed = True


def ended(pool, jobs):
    return {each.job: each.outcome or str(each.error) for each in carried_out(jobs, pool, NEEDS.get)}


def test_a_job_is_done_after_the_one_that_it_needs_and_others_do_not_wait():
    pool = Inline()
    assert ended(pool, ["repair", "other", "cell", "alignment"]).keys() == {"repair", "other", "cell", "alignment"}
    assert [job for job in pool.done if job != "other"] == ["alignment", "cell", "repair"]
    assert pool.closed


def test_what_needs_a_failed_job_fails_with_it_and_is_not_begun():
    pool = Inline(fails=("alignment",))
    assert ended(pool, ["alignment", "cell", "repair", "other"]) == {
        "alignment": "full", "cell": "full", "repair": "full", "other": "OTHER",
    }  # fmt: skip
    assert pool.done == ["alignment", "other"]


def test_a_need_that_is_not_among_the_jobs_is_done_already():
    assert ended(Inline(), ["cell"]) == {"cell": "CELL"}


def test_a_pool_is_never_given_more_than_it_has_room_for():
    pool = Inline()
    assert len(ended(pool, [f"cell {i}" for i in range(20)])) == 20
    assert pool.most == 3


def test_a_pool_is_closed_when_whoever_listens_has_had_enough():
    pool = Inline()
    for _ in carried_out(["a", "b"], pool, NEEDS.get):
        break
    # the generator is closed as it is collected
    assert pool.closed


def act(folder: Path, job: str):
    """Die, fail, or say who has done it."""
    begun = folder / f"{job}.begun"
    times = len(begun.read_text()) if begun.exists() else 0
    begun.write_text("x" * (times + 1))
    if job == "dies once" and times == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "always dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "fails":
        raise ConfigError("it cannot be")
    return os.getpid()


def check_pool(pool, folder):
    """The jobs of ``act``: an error is passed on, and a death costs the job that was running and no other."""
    jobs = ["fails", "dies once", *"abcdef"]
    done = {each.job: each for each in carried_out(jobs, pool, lambda job: None)}
    assert done.keys() == set(jobs)
    assert isinstance(done["fails"].error, ConfigError)
    assert str(done["fails"].error) == "it cannot be"
    assert all(each.error is None for job, each in done.items() if job != "fails")
    assert {job: len((folder / f"{job}.begun").read_text()) for job in jobs} == dict.fromkeys(jobs, 1) | {
        "dies once": 2
    }


def test_processes_of_this_machine_do_all_jobs_though_one_is_killed(tmp_path):
    check_pool(LocalPool(partial(act, tmp_path), processes=1), tmp_path)
    (dies,) = carried_out(["always dies"], LocalPool(partial(act, tmp_path), processes=1), lambda job: None)
    assert "killed by signal 9, 3 times" in str(dies.error)


def check_cluster(address: str, folder: Path):
    """In a process of its own: Ray reads how a cluster is guarded once, when it is imported."""
    from antibody_llm.bench.pools.ray import on_ray

    check_pool(on_ray(address, threads=1, gpus=0.0)(partial(act, folder)), folder)
    with pytest.raises(ConfigError, match="no node of the Ray cluster has 1 CPUs and 2 GPUs"):
        on_ray(address, threads=1, gpus=2.0)(partial(act, folder))


@pytest.mark.skipif(find_spec("ray") is None and "CI" not in os.environ, reason="antibody-llm[ray] is not installed")
def test_a_cluster_does_all_jobs_though_a_worker_is_killed(tmp_path):
    script = "import sys; from pathlib import Path; from tests.bench import test_pool as t; "
    script += "t.check_cluster(sys.argv[1], Path(sys.argv[2]))"
    with ray_cluster(Path(f"/tmp/antibody-ray-{os.getpid()}"), cpus=1) as address:
        words = [sys.executable, "-c", script, address, str(tmp_path)]
        paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        ended = subprocess.run(words, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_a_matrix_without_ray_or_a_cluster_says_what_to_do(monkeypatch):
    from antibody_llm.bench.pools.ray import on_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=re.escape("antibody-llm[ray]")):
        on_ray("auto", threads=1, gpus=0.0)
