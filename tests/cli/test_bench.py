"""antibody bench: a real matrix of two tiny cells, its plan, its outputs, and what is refused."""

import json
import sys

import pyarrow.parquet as pq
import pytest
import yaml

from antibody_llm.bench import run as engine
from antibody_llm.bench.attacker import search
from antibody_llm.bench.attacker.attacker import attackers
from antibody_llm.bench.matrix_file import read_matrix
from antibody_llm.lab.rows import build_rows
from tests.bench.attacker.world import needs_optuna
from tests.bench.test_results import Inline

TINY = {
    "title": "Two tiny cells",
    "defences": [{"name": "sft"}, {"name": "antibody-posterior", "finetuning": "antibody-posterior"}],
    "attacks": ["pointwise"],
    "model": "lab-aligned",
    "poison_ratios": [0.25],
    "budgets": {"short": {"epochs": 1}},
    "rows": 32,
    "prompts": 12,
    "max_new_tokens": 12,
    "seeds": 1,
}
for each in TINY["defences"]:
    each["alignment"] = "none"


@pytest.fixture
def here(monkeypatch):
    """Cells are done in this process, which has imported everything."""
    monkeypatch.setattr(engine, "local", lambda processes: Inline)
    monkeypatch.setattr("antibody_llm.bench.once.settle", lambda threads: None)


@pytest.fixture
def matrix(tmp_path):
    def write(**changed):
        (tmp_path / "m.yaml").write_text(yaml.safe_dump(TINY | changed))
        return tmp_path / "m.yaml"

    return write


def test_a_matrix_is_run_once_and_leaves_table_report_and_ranking(antibody, matrix, tmp_path, here):
    file, output = matrix(), tmp_path / "out"
    planned = json.loads(antibody("bench", file, "--output", output, "--plan", "--json").stdout)
    assert (planned["cells_left"], planned["alignments_left"], planned["cpu_seconds"]) == (2, 0, None)
    assert not output.exists()

    ended = antibody("bench", file, "--output", output, "--json")
    assert ended.code == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["failed"] == []
    by_name = {row["defence"]: row for row in found["rows"]}
    sft, ours = by_name["sft"], by_name["antibody-posterior"]
    for row in (sft, ours):
        assert row["harmful_score_low"] <= row["harmful_score"] <= row["harmful_score_high"]
        assert row["harm"] == max(row["harmful_score"], row["given_away"])
        assert {row["asked"], row["asked_before"], row["given_away_before"]}.isdisjoint({None})
        assert (row["num_rows"], row["num_poison"], row["prompts"]) == (32, 8, 12)
    assert sft["screening_auroc"] is None
    assert 0 <= ours["screening_auroc"] <= 1
    assert 0 <= ours["evidence_auroc"] <= 1
    assert ours["harmful_share"] is not None
    assert {line["scope"] for line in found["ranking"]} == {
        "mean over attacks and ratios", "worst attack and ratio",
    }  # fmt: skip

    assert pq.read_table(output / "results.parquet").to_pylist() == found["rows"]
    page = (output / "report.html").read_text()
    assert "Two tiny cells" in page
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")
    assert "antibody-posterior" in (output / "tables.md").read_text()
    assert r"\toprule" in (output / "tables.tex").read_text()
    assert not any((output / "working").iterdir())

    again = antibody("bench", file, "--output", output)
    assert again.code == 0
    assert "Ranking, familiar task, short" in again.stdout
    planned = antibody("bench", file, "--output", output, "--plan")
    assert "2, 0 of them to run" in planned.stdout


def test_a_cell_that_fails_is_shown_and_the_exit_code_is_1(antibody, matrix, tmp_path, here):
    ended = antibody("bench", matrix(rows=8, defences=[TINY["defences"][0]]), "--output", tmp_path / "out")
    assert ended.code == 1
    assert "failed: sft, pointwise 25 %, seed 0: DataError" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lab-cor"], "did you mean 'lab-core'"),
        (["lab-slice", "--jobs", "2", "--ray", "auto"], "--jobs is for this machine, and --ray for a cluster"),
        (["lab-slice", "--jobs", "0"], "--jobs"),
        (["/"], "a folder"),
        (["lab-slice", "--attacker-search", "0"], "--attacker-search"),
        (["lab-slice", "--attacker-search", "many"], "--attacker-search"),
        (["lab-slice", "--attacker-search", "1", "--plan"], "--plan cannot list them"),
        (["lab-slice", "--attacker-search", "1", "--jobs", "1", "--ray", "auto"], "--ray for a cluster"),
    ],
)
def test_what_cannot_be_run_ends_with_2(antibody, arguments, message):
    ended = antibody("bench", *arguments)
    assert ended.code == 2
    assert message in ended.stderr


def test_a_key_that_is_wrong_is_named_with_its_file(antibody, matrix, tmp_path):
    ended = antibody("bench", matrix(poison_ratio=0.2), "--output", tmp_path / "out")
    assert ended.code == 2
    assert f"{tmp_path}/m.yaml: 'poison_ratio': no such key; did you mean 'poison_ratios'" in ended.stderr


@needs_optuna
def test_a_search_is_run_once_and_leaves_a_page_with_its_control(antibody, matrix, tmp_path, here, monkeypatch):
    monkeypatch.setattr(search, "CONTROLS", search.CONTROLS[:1])  # so little training wins with none of them
    file = matrix(defences=[TINY["defences"][0]], attacks=["mixing"], poison_ratios=[0.2])
    asked = ("bench", file, "--output", tmp_path / "out", "--attacker-search")
    ended = antibody(*asked, "1", "--json")
    assert ended.code == 0, ended.stderr
    found = json.loads(ended.stdout)
    (sft,) = found["defences"]
    assert (sft["num_trials"], sft["num_failed"], len(sft["curve"])) == (1, 0, 1)
    assert sft["trials"][0]["words"].startswith("mixing at 20 %, 32 rows, 1 epoch, full at")
    assert [control["wins"] for control in found["controls"]] == [found["proves"]]
    page = (tmp_path / "out" / "worst_case.html").read_text()
    assert "Two tiny cells" in page
    results = {each.name: each.stat().st_mtime_ns for each in (tmp_path / "out" / "results").iterdir()}

    again = antibody(*asked, "1")
    assert again.code == 0
    assert "The owner of the weights" in again.stdout
    assert "worst_case.html" in again.stdout
    assert {each.name: each.stat().st_mtime_ns for each in (tmp_path / "out" / "results").iterdir()} == results


def test_rows_of_one_s_own_have_no_halves_to_search_by(antibody, matrix, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in build_rows("user", 32, seed=0).rows))
    files = dict.fromkeys(("data", "attack_data", "harmful_prompts", "test_data"), str(rows))
    ended = antibody("bench", matrix(**files), "--output", tmp_path / "out", "--attacker-search", "1")
    assert ended.code == 2
    assert "m.yaml: a search chooses on one half of the lab's world" in ended.stderr
    assert "Leave data, attack_data, harmful_prompts and test_data out" in ended.stderr


def test_a_search_without_optuna_says_what_to_install_before_any_cell(antibody, matrix, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    ended = antibody("bench", matrix(), "--output", tmp_path / "out", "--attacker-search", "1")
    assert ended.code == 2
    assert "Install antibody-llm[search]" in ended.stderr
    assert not (tmp_path / "out" / "results").exists()


@needs_optuna
def test_a_damaged_study_is_named_with_what_to_do(antibody, matrix, tmp_path, here):
    file = matrix(defences=[TINY["defences"][0]])
    study = tmp_path / "out" / "search" / attackers(read_matrix(str(file)))[0].key
    study.mkdir(parents=True)
    (study / "journal.log").write_text("a line of something else\n")
    ended = antibody("bench", file, "--output", tmp_path / "out", "--attacker-search", "1")
    assert ended.code == 2
    assert "this is no journal of a search" in ended.stderr
    assert "Move it away" in ended.stderr
