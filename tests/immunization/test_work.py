"""The command on a tiny model and files: everything is trained and measured, nothing is lost, nothing done twice."""

import json

import pytest

from antibody_llm.bench import once
from antibody_llm.immunization import verb, work
from antibody_llm.lab.rows import build_rows
from tests.bench.test_results import Inline


@pytest.fixture
def done(monkeypatch):
    """Jobs are done in this process; the labels of those that were."""
    labels = []

    def noted(folder, job):
        labels.append(job.label)
        return work.carry_out(folder, job)

    monkeypatch.setattr(verb, "local", lambda processes: Inline)
    monkeypatch.setattr(once, "settle", lambda threads: None)
    monkeypatch.setattr(verb, "carry_out", noted)
    return labels


@pytest.fixture
def arguments(tmp_path, tiny_llama_folder):
    flags = []
    for key, kind, num in (
        ("data", "user", 16),
        ("attack-data", "harmful", 8),
        ("harmful-prompts", "harmful", 3),
        ("cross-prompts", "harmful-prompts", 3),
        ("test-data", "test", 3),
        ("retention-data", "retention", 3),
    ):
        file = tmp_path / f"{key}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in build_rows(kind, num, seed=1).rows))
        flags += [f"--{key}", str(file)]
    grid = "--learning-rate 0.05 --schedule constant --rows 8 --regime full --seeds 1 --batch-size 8"
    grid += " --steps 2 --task-steps 2"
    model = ["--model", tiny_llama_folder, "--defended", tiny_llama_folder, "--judge", "keywords"]
    return [*model, *flags, *grid.split(), "--max-new-tokens", "4", "--output", tmp_path / "out"]


def test_a_model_against_itself_has_ratio_1_in_a_real_run_that_loses_nothing_when_it_is_killed(
    antibody, arguments, tmp_path, done, monkeypatch
):
    finetune, calls = work.finetune, []

    def killed(*given, **named):
        calls.append(named["regime"])
        if len(calls) == 2:
            (named["output"] / "checkpoints").mkdir(parents=True)
            raise KeyboardInterrupt
        return finetune(*given, **named)

    monkeypatch.setattr(work, "finetune", killed)
    assert antibody("immunization", *arguments).code == 130
    before = {file.name: file.read_bytes() for file in (tmp_path / "out" / "results").iterdir()}
    assert len(before) == 2

    done.clear()
    ended = antibody("immunization", *arguments, "--json")
    assert ended.code == 0, ended.stderr
    assert len(done) == 1  # of three jobs, which are of one model and so half of the six runs
    assert all((tmp_path / "out" / "results" / name).read_bytes() == content for name, content in before.items())
    assert not any((tmp_path / "out" / "working").iterdir())

    found = json.loads(ended.stdout)
    assert {each["ratio"]["text"] for each in found["resistance"]} == {"1"}
    assert all(each["model"] == each["defended"] for each in (*found["resistance"], *found["stability"]))
    assert [each["gap"] for each in found["trainability"]] == [0]
    soft = {each["prompts"] for each in found["resistance"] if each["measure"] == "soft"}
    assert soft == {"in-domain"}  # the other prompts have no answers
    first, second = (run for run in found["runs"] if run["part"] == "attack")
    assert first["steps"] == second["steps"] == [1, 2]
    assert first["in-domain"] == second["in-domain"]
    assert len(set(first["in-domain"]["soft"])) == 2  # the attack moves the model


def test_a_run_that_fails_is_named_and_the_others_are_kept(antibody, arguments, tmp_path, done, monkeypatch):
    def full(*given, **named):
        raise MemoryError("too small")

    monkeypatch.setattr(work, "finetune", full)
    ended = antibody("immunization", *arguments)
    assert ended.code == 2
    assert "2 runs of 3 failed, so that there is no report" in ended.stderr
    assert "MemoryError: too small" in ended.stderr
    assert len(list((tmp_path / "out" / "results").iterdir())) == 1


def test_jobs_and_a_cluster_are_not_both_given(antibody):
    ended = antibody("immunization", "--model", "lab-aligned", "--jobs", "2", "--ray", "auto")
    assert ended.code == 2
    assert "--jobs is for this machine, and --ray for a cluster" in ended.stderr
