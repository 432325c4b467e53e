"""The folder of a matrix, with jobs that do nothing: what is resumed, what is done again, what is set aside."""

import json
import os

import pytest

from antibody_llm.bench.matrix_file import make_matrix
from antibody_llm.bench.plan import make_plan
from antibody_llm.bench.pools.pool import Ended
from antibody_llm.bench.results import Results
from antibody_llm.bench.run import estimate, failures, run_plan
from antibody_llm.events import Notice, Progress

PLAN = make_plan(
    make_matrix({"defences": ["sft", "antibody"], "attacks": ["mixing", "backdoor"], "seeds": 1}, "m.yaml")
)


class Inline:
    """A pool in this process."""

    capacity = 1

    def __init__(self, work):
        self.work, self.ended = work, []

    def submit(self, job):
        try:
            self.ended.append(Ended(job, self.work(job)))
        except Exception as error:
            self.ended.append(Ended(job, error=error))

    def wait(self):
        ended, self.ended = self.ended, []
        return ended

    def close(self):
        pass


class Work:
    """Stands in for training and evaluation; notes what it has done."""

    def __init__(self, fails=()):
        self.done, self.fails = [], fails

    def __call__(self, folder, job):
        results = Results(folder)
        with results.locked(job):
            if any(name in job.label for name in self.fails):
                raise MemoryError("too small")
            if job.kind == "alignment":
                results.aligned(job).mkdir(parents=True)
                (results.aligned(job) / "result.json").write_text("{}")
            values = {"harmful_score": {"value": 0.25, "n": 4, "low": 0.1, "high": 0.5}, "cpu_seconds": 8.0}
            results.write(job, values)
            self.done.append(job)
        return values


def run(folder, work, listen=None):
    return run_plan(PLAN, folder, make_pool=Inline, work=work, listen=listen)


def test_a_finished_job_is_never_done_again(tmp_path):
    first, again, heard = Work(), Work(), []
    run(tmp_path, first)
    assert len(first.done) == len(PLAN.jobs) == 6
    found = run(tmp_path, again, heard.append)
    assert again.done == []
    assert found.values.keys() == set(PLAN.jobs)
    assert [(each.done, each.total) for each in heard if isinstance(each, Progress)] == [(6, 6)]


def test_what_was_lost_alone_is_done_again(tmp_path):
    run(tmp_path, Work())
    lost = PLAN.jobs[-1]
    (tmp_path / "results" / f"{lost.key}.json").unlink()
    again = Work()
    run(tmp_path, again)
    assert again.done == [lost]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"key": "other", "kind": "cell", "values": {}}', "\x00\xff", "null"]
)
def test_a_result_that_cannot_be_read_is_set_aside_and_named_and_its_job_done_again(tmp_path, content):
    run(tmp_path, Work())
    broken = PLAN.jobs[-1]
    file = tmp_path / "results" / f"{broken.key}.json"
    file.write_text(content, encoding="latin-1")
    again, heard = Work(), []
    run(tmp_path, again, heard.append)
    assert again.done == [broken]
    assert file.with_name(f"{file.name}.unreadable-1").read_text(encoding="latin-1") == content
    (notice,) = [each for each in heard if isinstance(each, Notice)]
    assert str(file) in notice.spelled()
    assert "unreadable-1" in notice.spelled()
    assert json.loads(file.read_text())["key"] == broken.key


def test_a_failed_alignment_is_an_error_of_its_cells_and_the_others_are_done(tmp_path):
    found = run(tmp_path, Work(fails=("alignment by antibody",)))
    assert len(found.errors) == 3
    (line,) = failures(found, PLAN.jobs)
    assert line == "alignment by antibody, seed 0 and 2 more: MemoryError: too small"
    again = Work()
    run(tmp_path, again)
    assert len(again.done) == 3


def test_an_alignment_whose_model_was_removed_is_made_again_only_where_a_cell_needs_it(tmp_path):
    run(tmp_path, Work())
    results, alignment = Results(tmp_path), PLAN.jobs[0]
    (results.aligned(alignment) / "result.json").unlink()
    results.aligned(alignment).rmdir()
    idle = Work()
    run(tmp_path, idle)
    assert idle.done == []
    cell = next(job for job in PLAN.jobs if job.needs == alignment)
    (tmp_path / "results" / f"{cell.key}.json").unlink()
    again = Work()
    run(tmp_path, again)
    assert again.done == [alignment, cell]


def test_an_estimate_is_of_what_is_left_by_the_times_that_are_stored(tmp_path):
    assert estimate(PLAN, tmp_path).cpu_seconds is None
    run(tmp_path, Work(fails=("antibody, backdoor",)))
    found = estimate(PLAN, tmp_path)
    assert (found.cells, found.alignments, found.cells_left, found.alignments_left) == (4, 2, 1, 0)
    assert found.cpu_seconds == 8.0


def test_a_lock_says_who_began_a_job_each_time(tmp_path):
    results, job = Results(tmp_path), PLAN.jobs[0]
    for _ in range(2):
        with results.locked(job):
            pass
    lines = (tmp_path / "locks" / job.key).read_text().splitlines()
    assert [line.split()[0] for line in lines] == [str(os.getpid())] * 2
