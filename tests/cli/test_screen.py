import json

import pytest

from antibody_llm.lab.rows import build_rows
from tests.gsm8k import write_jsonl


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ANTIBODY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def upload(tmp_path):
    return write_jsonl(tmp_path / "user.jsonl", build_rows("user", 40, seed=3, poison_ratio=0.25).rows)


def test_json_is_the_summary_and_a_table_says_the_same_to_a_reader(antibody, tmp_path, upload, monkeypatch):
    monkeypatch.setattr("antibody_llm.screening.posterior.NUM_DRAWS", 30)
    command = ["screen", upload, "--model", "lab-aligned", "--output", tmp_path / "run"]
    ended = antibody(*command, "--json")
    assert (ended.code, ended.stderr) == (0, "")
    printed = json.loads(ended.stdout)
    assert printed["verdict"] == "harm found"
    assert printed["output"] == str(tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert printed == stored | {"output": printed["output"]}
    again = antibody(*command)
    assert again.code == 0
    assert "already complete" in again.stderr
    for text in ("harm found", f"{100 * printed['estimated_harmful_share']:.1f} %", "feature-shift", "report.html"):
        assert text in again.stdout
    assert "harmful answers to harmless prompts are not seen" in " ".join(again.stdout.split())


def test_without_anchors_and_base_the_reader_is_told_so(antibody, tmp_path, upload):
    ended = antibody("screen", upload, "--model", "lab", "--output", tmp_path / "run")
    assert ended.code == 0
    assert "no anchors" in ended.stdout
    assert "only ranked" in ended.stdout
    assert "prompts alone" not in ended.stdout  # by ratio, the answers count
    assert "--base" in ended.stderr


def test_a_configuration_file_may_name_the_upload(antibody, tmp_path, upload):
    file = tmp_path / "screen.yaml"
    file.write_text(f"data: {upload}\nmodel: lab\noutput: {tmp_path / 'run'}\nbatch_size: 16\n")
    ended = antibody("screen", "--config", file, "--json")
    assert ended.code == 0
    assert json.loads(ended.stdout)["num_rows"] == 40


MISTAKES = {
    "--model lab --output run": "DATA is missing",
    "USER --output run": "--model is missing",
    "USER --model lab": "--output is missing",
    "none.jsonl --model lab --output run": "none.jsonl: no such file",
    "CSV --model lab --output run": "line 1: comma-separated values",
    "USER --model ./none --output run": "no such folder",
    "USER --model lab --output run --base ./none": "no such folder",
    "USER --model lab --output run --evidence shift": "--base",
    "USER --model lab --output run --evidence hunch": "must be one of",
    "USER --model lab --output CSV": "a file is there",
    "USER --model lab --output HERE": "the output holds an input of the run",
    "USER --model lab-aligned --base lab-aligned --output run": "--base must be the model as it was before",
    "USER --model lab --output run --batch-size many": "--batch-size",
}


@pytest.mark.parametrize("flags", MISTAKES)
def test_a_mistake_ends_with_2_says_what_and_writes_nothing(antibody, tmp_path, upload, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    csv = tmp_path / "user.csv"
    csv.write_text("prompt,completion\na,b\n")
    places = {"USER": upload, "CSV": csv, "HERE": tmp_path}
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    ended = antibody("screen", *(places.get(word, word) for word in flags.split()), "--json")
    assert ended.code == 2
    assert "Traceback" not in ended.stderr
    assert MISTAKES[flags] in ended.stderr
    assert json.loads(ended.stdout)["error"]["message"] in ended.stderr
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    assert not (tmp_path / "run").exists()
