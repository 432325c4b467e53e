"""The order in which jobs are carried out, without carrying any out."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from antibody_llm.bench.cell import Alignment, Cell
from antibody_llm.bench.matrix import all_jobs, carried_out

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


def sleep_on(folder: Path, job) -> dict[str, float]:
    """A job that is killed while it runs."""
    (folder / "pid.tmp").write_text(str(os.getpid()))
    (folder / "pid.tmp").rename(folder / "pid")
    time.sleep(600)
    return {}


def until(holds):
    """Whether it comes to hold within two minutes: a busy machine is slow to start a process."""
    deadline = time.monotonic() + 120
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds()


def alive(pid):
    """Neither gone nor a zombie that nobody has collected yet."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_worker_does_not_outlive_its_parent_and_says_nothing_when_a_terminal_interrupts_both(tmp_path, number):
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\n"
        "from antibody_llm.bench.matrix import carried_out\n"
        "from tests.bench.test_matrix import PLAIN, sleep_on\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        "        list(carried_out(Path(sys.argv[1]), [PLAIN.aligned], processes=1, carry_out=sleep_on))\n"
        "    except KeyboardInterrupt:\n"
        "        sys.exit(130)\n"
    )
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])},
        cwd=root,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, as a terminal makes for each command
    )
    try:
        assert until((tmp_path / "pid").exists)
    finally:
        if number == signal.SIGKILL:
            parent.kill()
        else:
            os.killpg(parent.pid, number)
        _, said = parent.communicate(timeout=120)
    worker = int((tmp_path / "pid").read_text())
    assert until(lambda: not alive(worker))
    assert parent.returncode == (-9 if number == signal.SIGKILL else 130)
    assert number == signal.SIGKILL or said == ""


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        (PLAIN, "sft-sft-full-familiar-p0.2-4epochs-seed0-report"),
        (REPAIRED, "sft-sft-full-familiar-p0.2-4epochs-seed0-report-antidote"),
        (replace(PLAIN, purpose=None), "sft-sft-full-familiar-p0.2-4epochs-seed0"),
        (replace(REPAIRED, purpose=None), "sft-sft-full-familiar-p0.2-4epochs-seed0-antidote"),
    ],
)
def test_the_name_of_a_folder_stays_what_it_was(cell, name):
    assert cell.name == name
