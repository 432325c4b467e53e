"""The page of the lab's matrix is made from its results; no model is trained."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import lab_core

DOCS = Path(__file__).resolve().parents[2] / "docs"


def row(cell, **more):
    defence, attack, ratio, seed = cell
    described = {"defence": defence, "attack": attack, "poison_ratio": ratio, "seed": seed}
    described |= {"budget": "default", "task": "familiar", "prompts": 200, "key": "k", "cpu_seconds": 20.0}
    figures = {"harm": 0.123456, "harmful_score": 0.1, "harmful_score_low": 0.05, "finetune_accuracy": 1.0}
    return described | figures | {"asked": None, "error": None} | more


def stored(folder, rows):
    pq.write_table(pa.Table.from_pylist(rows), folder / "results.parquet")


def test_the_preset_has_at_least_eight_defences_six_attacks_three_ratios_and_three_seeds():
    cells = lab_core.expected()
    assert [len({cell[place] for cell in cells}) for place in range(4)] == [9, 6, 3, 3]
    assert len(cells) == 9 * 6 * 3 * 3


def test_a_matrix_that_lacks_a_cell_or_has_a_failed_one_is_refused(tmp_path, capsys):
    cells = sorted(lab_core.expected())
    stored(tmp_path, [row(cell) for cell in cells[1:]])
    with pytest.raises(SystemExit):
        lab_core.main(["--read", str(tmp_path), "--output", str(tmp_path / "figures.json")])
    assert "1 cells are missing and 0 failed" in capsys.readouterr().err
    stored(tmp_path, [row(cells[0], error="OSError: full"), *map(row, cells[1:])])
    with pytest.raises(ValueError, match="0 cells are missing and 1 failed"):
        lab_core.read(tmp_path)


def test_figures_are_stored_without_what_is_of_one_machine_and_make_the_page(tmp_path):
    stored(tmp_path, [row(cell) for cell in lab_core.expected()])
    figures = tmp_path / "figures.json"
    lab_core.main(["--read", str(tmp_path), "--output", str(figures)])
    kept = json.loads(figures.read_text())["rows"]
    assert kept[0]["harm"] == 0.1235
    assert not kept[0].keys() & {"key", "cpu_seconds", "harmful_score_low", "asked", "error"}
    lab_core.main(["--report", str(figures), "--write", str(tmp_path / "lab-core.md")])
    made = (tmp_path / "lab-core.md").read_text()
    assert "486 cells, none missing and none failed" in made
    assert "| sft | =1 | 12.3 [" in made
    assert (tmp_path / lab_core.PICTURE).is_file()


def test_the_committed_page_is_of_the_committed_results():
    rows = lab_core.filled(json.loads(lab_core.RESULTS.read_text(encoding="utf-8"))["rows"])
    assert {lab_core.cell(each) for each in rows} == lab_core.expected()
    assert lab_core.page(rows) == lab_core.PAGE.read_text(encoding="utf-8")
    assert (DOCS / lab_core.PICTURE).is_file()
