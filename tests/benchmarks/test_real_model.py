"""The figures of the study of a real model, and the page of them, by hand-made cells; no model is trained."""

import json
import shutil

import pytest
from benchmarks.real_model import RESULTS, ROOT, SHARES, aims, expected, main, page, plans, read

from antibody_llm.bench.results import Results
from antibody_llm.building.study import TASKS, study


def cell(alignment="antibody", finetuning="sft", ratio=0.2, **changed):
    shares = {f"{name}{end}": 0.5 for name in SHARES for end in ("", "_low", "_high")} | {"asked": None}
    rest = {
        "evidence_auroc": 0.99,
        "screening_auroc": 0.9,
        "poison_weight": 0.0,
        "harmful_share": 0.21,
        "answers_share": None,
        "num_rows": 300,
        "num_poison": 60,
        "cpu_seconds": 600.0,
    }
    named = {"task": "", "alignment": alignment, "finetuning": finetuning, "poison_ratio": ratio, "error": None}
    named |= {"post": "none", "attack": "mixing", "defence": f"{finetuning} after {alignment}"}
    return named | shares | rest | changed


def values(**changed):
    """What came of a cell."""
    share = {"value": 0.5, "n": 200, "low": 0.4, "high": 0.6}
    shares = {name: share for name in SHARES if name != "asked"}
    figures = {"evidence_auroc": 0.99, "screening_auroc": 0.9, "harmful_share": 0.21, "cpu_seconds": 600.0}
    figures |= {"num_rows": 300, "num_poison": 60}
    return shares | {name: share | {"value": value} for name, value in changed.items()} | figures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study of which two cells have ended and one alignment; nothing was trained."""
    folder, model = tmp_path_factory.mktemp("real"), tmp_path_factory.mktemp("taught")
    (model / "config.json").write_text("{}")
    (model / "antibody.json").write_text(json.dumps({"profile": "english"}))
    study(model, output=folder / "study")
    ended = {
        "sft": values(harmful_score=0.9, finetune_accuracy=1.0, over_refusal=0.01, further_refusal=0.02),
        "antibody-posterior": values(
            harmful_score=0.04, finetune_accuracy=0.97, over_refusal=0.03, further_refusal=0.1
        ),
    }
    task, plan, _ = next(plans(folder))
    assert task == TASKS[0]
    results = Results(folder / "cells")
    for name, found in ended.items():
        job = next(cell.job for cell in plan.cells if cell.defence == f"{name} after antibody")
        results.write(job, found)
    results.write(job.needs, {"cpu_seconds": 120.0})
    results.aligned(job.needs).mkdir(parents=True)
    (results.aligned(job.needs) / "result.json").touch()
    return folder


def test_each_aim_is_held_against_the_undefended_cell_of_the_same_alignment_and_task(folder):
    lines = aims(read(folder)["rows"])[2:]
    met = {line.split(" | ")[3]: line.split(" | ")[5].removesuffix(" |") for line in lines}
    assert list(met.values()) == ["yes", "yes", "no", "yes", "yes", "yes", "no"]  # accuracy 3 below, XSTest 8 above


def test_a_limit_that_is_reached_exactly_is_kept_and_xstest_is_no_aim_where_it_was_not_given():
    plain = cell(harmful_score=0.9, finetune_accuracy=1.0, further_refusal=None, task="novel")
    ours = cell(finetuning="antibody-posterior", finetune_accuracy=0.98, further_refusal=None, task="novel")
    lines = aims([plain, ours])[2:]
    assert "| accuracy 2 points below plain SFT's at most | 2.0 below | yes |" in lines[2]
    assert not any("XSTest" in line for line in lines)
    repaired = ours | {"post": "wise-ft"}
    assert [line.split(" | ")[2] for line in aims([plain, ours, repaired])[2:]] == [
        *["antibody-posterior"] * len(lines),
        *["antibody-posterior + wise-ft"] * len(lines),
    ]


def test_the_page_says_how_many_cells_there_are_and_what_an_alignment_cost(folder, tmp_path):
    file = tmp_path / "kept.json"
    assert main(["--read", str(folder), "--output", str(file)]) == 0
    figures = json.loads(file.read_text())
    made = " ".join(page(figures).split())
    assert f"2 of {expected()} cells" in made
    assert expected() == 34
    assert "alignment by antibody 2 minutes" in made
    assert (
        "| antibody | antibody-posterior | 4.0 [40, 60] | 50.0 | 97.0 | 3.0 / 10.0 | 50.0 | 0.990 / 0.900 | 21.0 |"
        in made
    )


def test_the_committed_page_is_of_the_committed_figures():
    assert page(json.loads(RESULTS.read_text())) == (ROOT / "docs" / "real-model-results.md").read_text()


def test_a_study_without_an_ended_cell_and_a_folder_without_a_study_are_said(folder, tmp_path, capsys):
    copied = tmp_path / "begun"
    shutil.copytree(folder / "study", copied / "study")
    for wrong, said in ((copied, "no cell of the study has ended"), (tmp_path, "novel-answers.yaml: there is no such")):
        with pytest.raises(SystemExit):
            main(["--read", str(wrong), "--output", str(tmp_path / "kept.json")])
        assert said in capsys.readouterr().err
    assert not (tmp_path / "kept.json").exists()
