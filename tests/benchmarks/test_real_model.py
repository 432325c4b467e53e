"""The figures of the study of a real model, and the page of them, by hand-made cells; no model is trained."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmarks.real_model import FILES, SHARES, aims, expected, main, page, read


def cell(alignment="antibody", finetuning="sft", ratio=0.2, **changed):
    shares = {f"{name}{end}": 0.5 for name in SHARES for end in ("", "_low", "_high")} | {"asked": None}
    rest = {
        "screening_auroc": 0.99,
        "harmful_share": 0.21,
        "answers_share": None,
        "num_rows": 300,
        "num_poison": 60,
        "cpu_seconds": 600.0,
    }
    named = {"task": "", "alignment": alignment, "finetuning": finetuning, "poison_ratio": ratio, "error": None}
    named |= {"attack": "mixing", "defence": f"{finetuning} after {alignment}"}
    return named | shares | rest | changed


@pytest.fixture
def folder(tmp_path):
    cells = [
        cell(harmful_score=0.9, finetune_accuracy=1.0, over_refusal=0.01, further_refusal=0.02),
        cell(
            *("antibody", "antibody-posterior"),
            **{"harmful_score": 0.04, "finetune_accuracy": 0.97, "over_refusal": 0.03, "further_refusal": 0.1},
        ),
    ]
    pq.write_table(pa.Table.from_pylist(cells), tmp_path / f"{FILES[0]}.parquet")
    results = tmp_path / "cells" / "results"
    results.mkdir(parents=True)
    (results.parent / "results.parquet").touch()  # of the last matrix
    aligned = {"kind": "alignment", "config": {"defence": {"name": "antibody"}}, "values": {"cpu_seconds": 120.0}}
    (results / "a.json").write_text(json.dumps(aligned))
    return tmp_path


def test_each_aim_is_held_against_the_undefended_cell_of_the_same_alignment_and_task(folder):
    met = {line.split(" | ")[2]: line.split(" | ")[4].removesuffix(" |") for line in aims(read(folder))[2:]}
    assert list(met.values()) == ["yes", "yes", "no", "yes", "yes", "yes", "no"]  # accuracy 3 below, XSTest 8 above


def test_a_limit_that_is_reached_exactly_is_kept_and_xstest_is_no_aim_where_it_was_not_given():
    plain = cell(harmful_score=0.9, finetune_accuracy=1.0, further_refusal=None, task="novel")
    ours = cell(finetuning="antibody-posterior", finetune_accuracy=0.98, further_refusal=None, task="novel")
    lines = aims([plain, ours])[2:]
    assert "| accuracy 2 points below plain SFT's at most | 2.0 below | yes |" in lines[2]
    assert not any("XSTest" in line for line in lines)


def test_the_page_says_how_many_cells_there_are_and_what_an_alignment_cost(folder, tmp_path):
    file = tmp_path / "kept.json"
    assert main(["--read", str(folder), "--output", str(file)]) == 0
    figures = json.loads(file.read_text())
    made = " ".join(page(figures).split())
    assert f"2 of {expected()} cells" in made
    assert expected() == 32
    assert "alignment by antibody 2 minutes" in made
    assert "| antibody | antibody-posterior | 4.0 [50, 50] | 50.0 | 97.0 | 3.0 / 10.0 | 50.0 | 0.990 | 21.0 |" in made


def test_a_cell_that_failed_is_no_figure(folder):
    pq.write_table(pa.Table.from_pylist([cell(error="OSError: full")]), folder / f"{FILES[1]}.parquet")
    with pytest.raises(ValueError, match="sft after antibody failed: OSError: full"):
        read(folder)
