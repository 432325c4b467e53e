"""The order in which jobs are carried out, without carrying any out."""

from pathlib import Path

import pytest

from antibody.benchmark.cell import Alignment, Cell
from antibody.benchmark.matrix import all_jobs, carried_out

PLAIN = Cell(alignment="sft", finetuning="sft", task="familiar", poison_ratio=0.2, epochs=4)
OURS = Cell(alignment="antibody", finetuning="antibody", task="familiar", poison_ratio=0.2, epochs=4)
REPAIRED = Cell(alignment="sft", finetuning="sft", post="antidote", task="familiar", poison_ratio=0.2, epochs=4)


def write_name(folder: Path, job) -> dict[str, float]:
    """Stands in for a job; it insists that what the job needs was done."""
    if isinstance(job, Cell):
        assert (folder / job.needs.name).exists()
    if job == Alignment("antibody", "full", 0):
        raise OSError("the disk is full")
    (folder / job.name).touch()
    return {"seconds": 1.0}


def test_a_repair_brings_along_the_fine_tuning_and_the_alignment_that_it_needs_and_nothing_is_done_twice():
    jobs = all_jobs([REPAIRED, PLAIN, OURS])
    assert jobs == [PLAIN.aligned, OURS.aligned, PLAIN, REPAIRED, OURS]


def test_what_needs_a_failed_job_fails_with_it_and_the_rest_is_done(tmp_path):
    done = list(carried_out(tmp_path, all_jobs([REPAIRED, OURS]), processes=2, carry_out=write_name))
    errors = {d.job: str(d.error) for d in done if d.error is not None}
    assert errors == {OURS.aligned: "the disk is full", OURS: "the disk is full"}
    assert {d.job for d in done if d.error is None} == {PLAIN.aligned, PLAIN, REPAIRED}


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        (PLAIN, "sft-sft-full-familiar-p0.2-4epochs-seed0"),
        (REPAIRED, "sft-sft-full-familiar-p0.2-4epochs-seed0-antidote"),
    ],
)
def test_the_name_of_a_folder_stays_what_it_was(cell, name):
    assert cell.name == name
