"""The commands on a tiny model and files: a job is carried out, a training is made of stored jobs, a job is judged."""

import json
import random

import pytest

from antibody_llm.audit import train, work
from antibody_llm.audit.plan import make_plan
from antibody_llm.audit.work import carry_out, stock_of
from antibody_llm.bench import once
from antibody_llm.bench.results import Results
from antibody_llm.errors import ConfigError
from antibody_llm.lab.rows import build_rows
from antibody_llm.runs.finetune import finetune
from antibody_llm.settings.audit import AuditTrainSettings
from tests.bench.test_results import Inline


@pytest.fixture
def files(tmp_path):
    named = {}
    for key, kind, num in (
        ("data", "user", 16),
        ("attack_data", "harmful", 8),
        ("harmful_prompts", "harmful", 6),
        ("benign_prompts", "lookalike", 2),
    ):
        named[key] = str(tmp_path / f"{key}.jsonl")
        with open(named[key], "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in build_rows(kind, num, seed=1).rows)
    return named


@pytest.fixture
def settings(tmp_path, tiny_llama_folder, files):
    return AuditTrainSettings(
        model=(str(tiny_llama_folder),), output=tmp_path / "out", num=56, judge="keywords", prompts=2, **files
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(once, "settle", lambda threads: None)
    monkeypatch.setattr("antibody_llm.audit.plan.DEFAULT_TOKENS", 4)


def made_up(folder, job):
    """Stored values of a job that nobody carries out, with the features that real ones have."""
    results, rng, attack = Results(folder), random.Random(job.key), job.config["honest"] is None
    values = {
        "features": {f"{group}/unrefused/mean": 5.0 * attack + rng.gauss(0, 1) for group in ("harmful", "talk")},
        "rise": 0.8 * attack,
        "cpu_seconds": 1.0,
    }
    results.write(job, values)
    return values


def test_a_job_is_carried_out_on_probes_that_do_not_say_what_harm_it_did(settings):
    plan = make_plan(settings)
    job = plan.planned[1].job
    assert plan.planned[1].attack == "mixing"
    found = carry_out(settings.output, job)
    assert found["features"]["harmful/moved@late/mean"] > 0
    assert set(found["harm"]) == {"plain"}
    assert found["num_poison"] >= 1
    assert carry_out(settings.output, job) == found  # not done again
    assert not any((settings.output / "working").iterdir())
    asked = set(work.held_questions(settings.harmful_prompts))
    assert len(asked) == 3
    assert not asked & set(stock_of(job).harmful)


def test_a_larger_training_has_the_jobs_of_a_smaller_one(settings):
    plan = make_plan(settings)
    fewer = make_plan(AuditTrainSettings(**{**vars(settings), "num": 20}))
    assert [each.job.key for each in plan.planned[:20]] == [each.job.key for each in fewer.planned]
    assert len({each.job.key for each in plan.planned}) == 56
    kinds = [each.attack for each in plan.planned]
    assert kinds.count(None) == 28
    assert len(set(kinds)) > 15


def test_a_training_gives_a_classifier_by_which_a_run_is_judged(
    antibody, settings, monkeypatch, tmp_path, tiny_llama_folder
):
    monkeypatch.setattr(train, "local", lambda processes: Inline)
    monkeypatch.setattr(train, "carry_out", made_up)
    flags = [
        word
        for key in ("data", "attack_data", "harmful_prompts", "benign_prompts")
        for word in (f"--{key.replace('_', '-')}", getattr(settings, key))
    ]
    ended = antibody(
        *("audit", "train", "--model", tiny_llama_folder, "--output", settings.output, "--num", "56"),
        *("--judge", "keywords", "--prompts", "2", *flags, "--json"),
    )
    assert ended.code == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["num_jobs"] == {"honest": 28, "harmful": 28}
    assert found["held_out_families"]["ciphers"]["caught"]["n"] > 0
    assert "| ciphers |" in (settings.output / "audit_train.md").read_text()

    run = finetune(tiny_llama_folder, output=tmp_path / "run", data=settings.data, defence="sft", epochs=1).output
    classifier = ("--classifier", settings.output / "classifier.json")
    ended = antibody("audit", run, *classifier, "--output", tmp_path / "verdict.json", "--json")
    assert ended.code == 0, ended.stderr
    verdict = json.loads(ended.stdout)
    assert verdict == json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["alarm"] == (verdict["score"] > verdict["threshold"])
    assert verdict["aligned"] == str(tiny_llama_folder)
    ended = antibody("audit", *classifier, run)
    assert f"beside {tiny_llama_folder}" in ended.stdout
    assert "of 28 honest" in ended.stdout


def test_a_job_without_a_classifier_or_a_beginning_says_what_to_do(antibody, tmp_path, tiny_llama_folder):
    ended = antibody("audit", tiny_llama_folder)
    assert ended.code == 2
    assert "Give it as --aligned" in ended.stderr
    ended = antibody("audit", tiny_llama_folder, "--aligned", tiny_llama_folder)
    assert ended.code == 2
    assert "Train one, `antibody audit train`" in ended.stderr
    assert "--classifier" in ended.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num": 4}, "num is 4"),
        ({"false_alarms": 0.0}, "false_alarms is 0.0"),
        ({"data": None}, "data is missing"),
        ({"model": ()}, "give at least one"),
        ({"defences": ("nothing",)}, "nothing"),
    ],
)
def test_a_training_that_cannot_be_is_refused_before_it_begins(settings, change, said):
    with pytest.raises(ConfigError, match=said):
        make_plan(AuditTrainSettings(**{**vars(settings), **change}))
