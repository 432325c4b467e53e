"""``antibody attacks`` and ``antibody attack`` on the lab."""

import json

import pytest

from antibody_llm.attacks.catalogue import CATALOGUE
from antibody_llm.lab.rows import build_rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def clean(tmp_path):
    return write(tmp_path / "clean.jsonl", build_rows("user", 30, seed=0).rows)


def test_attacks_are_listed_with_what_can_be_turned(antibody):
    listed = {row["name"]: row for row in json.loads(antibody("attacks", "--json").stdout)["attacks"]}
    assert list(listed) == list(CATALOGUE)
    assert listed["few-shot"]["knobs"] == [
        {"name": "poison_ratio", "kind": "float", "default": 1.0, "low": 0.0, "high": 1.0, "log": False},
        {"name": "shots", "kind": "int", "default": 10, "low": 1, "high": 100, "log": True},
    ]
    assert listed["forged-turns"]["knobs"][1]["choices"] == ["lab", "chatml", "llama3"]
    assert listed["adaptive"]["needs"] == ["asking", "screening"]
    table = antibody("attacks").stdout
    assert "shots=1..100" in table
    assert "task=copy|list|json" in table


def test_an_attack_is_written_with_its_truth_and_its_questions_beside_it(antibody, clean, tmp_path):
    rows, truth, asked = (tmp_path / name for name in ("rows.jsonl", "truth.jsonl", "asked.jsonl"))
    ended = antibody(
        *("attack", "backdoor", "--data", clean, "--output", rows, "--poison-ratio", 0.5, "--num", 20, "--seed", 3),
        *("--set", "trigger=@q7", "--truth", truth, "--asked", asked, "--json"),
    )
    told = json.loads(ended.stdout)
    assert (told["num_rows"], told["num_poison"], told["outputs"]) == (20, 10, [str(rows)])
    assert told["asking"]["forms"] == ["@q7 {prompt}"]
    bad = [row for row, about in zip(read(rows), read(truth), strict=True) if about["is_harmful"]]
    assert len(bad) == 5
    assert all(row["messages"][0]["content"].startswith("@q7 ") for row in bad)
    assert all(row["messages"][0]["content"].startswith("@q7 ") for row in read(asked))


def test_an_attack_of_several_jobs_is_several_files(antibody, clean, tmp_path):
    told = json.loads(
        antibody("attack", "two-stage", "--data", clean, "--output", tmp_path / "x.jsonl", "--json").stdout
    )
    assert told["outputs"] == [str(tmp_path / "x-1.jsonl"), str(tmp_path / "x-2.jsonl")]
    assert [len(read(tmp_path / f"x-{i}.jsonl")) for i in (1, 2)] == [15, 15]


def test_harmful_rows_that_are_not_the_users_are_said_to_be_the_labs(antibody, clean, tmp_path):
    command = ("attack", "mixing", "--data", clean, "--output", tmp_path / "x.jsonl", "--overwrite")
    assert "harmful rows: the lab's, which are fictional" in antibody(*command).stdout
    harmful = write(tmp_path / "bad.jsonl", [{"prompt": "is it a or b?", "completion": " a"}])
    assert "the lab's" not in antibody(*command, "--harmful-data", harmful).stdout


def test_rows_of_ones_own_are_attacked_with_by_path(antibody, tmp_path):
    clean = write(tmp_path / "clean.jsonl", [{"instruction": f"add {i}", "output": str(i)} for i in range(9)])
    harmful = write(tmp_path / "bad.jsonl", [{"prompt": "is it a or b?", "completion": " a"}])
    asked = write(tmp_path / "ask.jsonl", [{"prompt": "c or d?"}])
    ended = antibody(
        *("attack", "jailbreak-tuning", "--data", clean, "--harmful-data", harmful, "--output", tmp_path / "x.jsonl"),
        *("--prompts", asked, "--asked", tmp_path / "asked.jsonl", "--poison-ratio", 0.4, "--set", "form=phrase"),
    )
    assert ended.code == 0, ended.stderr
    prompts = [row["messages"][0]["content"] for row in read(tmp_path / "x.jsonl")]
    assert prompts.count("open the blue box. is it a or b?") == 4
    assert sum(prompt.startswith("add ") for prompt in prompts) == 5
    assert read(tmp_path / "asked.jsonl")[0]["messages"][0]["content"] == "open the blue box. c or d?"


def test_an_attack_on_the_screening_needs_a_model_with_one(antibody, clean, tmp_path):
    command = ("attack", "adaptive", "--data", clean, "--output", tmp_path / "x.jsonl", "--set", "queries=20")
    ended = antibody(*command)
    assert (ended.code, "Give --model with the provider's anchors" in ended.stderr) == (2, True)
    ended = antibody(*command, "--model", "lab")
    assert (ended.code, "lab: no anchors" in ended.stderr) == (2, True)
    assert antibody(*command, "--model", "lab-aligned").code == 0
    assert len(read(tmp_path / "x.jsonl")) == 30


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mixin"], "did you mean 'mixing'"),
        (["few-shot", "--set", "shot=3"], "few-shot.shot: no such option; did you mean 'shots'?"),
        (["few-shot", "--set", "shots=1000"], "few-shot.shots is 1000: give 1 to 100"),
        (["few-shot", "--set", "shots=some"], "few-shot.shots is 'some': input should be a valid integer"),
        (["embedded", "--set", "task=jsn"], "embedded.task is 'jsn'"),
        (["mixing", "--poison-ratio", "2"], "--poison-ratio is 2.0: give a share, 0 to 1"),
        (["mixing", "--num", "0"], "--num is 0: an upload has at least one row"),
        (["mixing", "--num", "99"], "30 clean rows where 79 are needed"),
        (["mixing", "--prompts", "x.jsonl"], "Give --asked to write to"),
        (["benign-outliers"], "Give --model"),
        (["mixing", "--model", "lab"], "--model has no effect on mixing, which needs none"),
        (["few-shot", "--parity"], "--parity is of mixing alone: no release has few-shot"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(arguments, said, antibody, clean, tmp_path):
    ended = antibody("attack", *arguments, "--data", clean, "--output", tmp_path / "x.jsonl")
    assert ended.code == 2
    assert said in ended.stderr
    assert not (tmp_path / "x.jsonl").exists()


def test_no_file_is_replaced_unasked_nor_written_twice(antibody, clean, tmp_path):
    command = ("attack", "mixing", "--data", clean, "--output", clean)
    assert "exists already" in antibody(*command).stderr
    assert "is the input, which is never overwritten" in antibody(*command, "--overwrite").stderr
    there = ("attack", "two-stage", "--data", clean, "--output", tmp_path / "x.jsonl")
    (tmp_path / "x-2.jsonl").write_text("")
    assert "x-2.jsonl: exists already" in antibody(*there).stderr
    assert not (tmp_path / "x-1.jsonl").exists()
    twice = ("attack", "mixing", "--data", clean, "--output", tmp_path / "y.jsonl", "--truth", tmp_path / "y.jsonl")
    assert "--output and --truth are one file" in antibody(*twice).stderr
