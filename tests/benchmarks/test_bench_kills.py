"""The scripts that kill a matrix and time its scheduler: what they count, with jobs that do nothing."""

from tests.bench.test_results import PLAN, Inline, Work, run

from antibody_llm.bench.results import Results
from benchmarks import bench_kills, bench_scheduler


def test_a_job_that_was_begun_twice_is_counted_and_a_result_that_changed_is_seen(tmp_path):
    run(tmp_path, Work())
    before = bench_kills.finished(tmp_path)
    assert len(before) == len(PLAN.jobs)
    assert set(bench_kills.begun(tmp_path).values()) == {1}
    lost = tmp_path / "results" / f"{PLAN.jobs[-1].key}.json"
    lost.unlink()
    run(tmp_path, Work())
    assert bench_kills.begun(tmp_path)[PLAN.jobs[-1].key] == 2
    assert bench_kills.finished(tmp_path) == before
    lost.write_text("{}")
    assert bench_kills.finished(tmp_path) != before


def test_a_process_has_a_job_from_the_lock_until_the_result(tmp_path):
    job = PLAN.jobs[0]
    with Results(tmp_path).locked(job):
        assert len(bench_kills.workers(tmp_path)) == 1
    Work()(tmp_path, job)
    assert bench_kills.workers(tmp_path) == []


def test_the_scheduler_is_timed_on_at_least_as_many_cells_as_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_scheduler, "SLEEP", 0.0)
    plan, _ = bench_scheduler.planned(5)
    assert len(plan.cells) == len(bench_scheduler.read_matrix("lab-core").defences) * 6 * 3
    found = bench_scheduler.timed(plan, tmp_path / "jobs", Inline, 1)
    assert found["jobs"] == len(plan.jobs)
    assert found["ms_per_job_beyond_its_sleep"] > 0
