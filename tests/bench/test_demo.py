"""What the demonstration plans and what its rows say; no model is trained."""

import json
from pathlib import Path

from antibody_llm.bench.cell import MEASURES, Cell
from antibody_llm.bench.demo import PAIR, plan

ROOT = Path(__file__).resolve().parents[2]


def test_a_row_has_the_columns_that_results_json_promises():
    row = plan(quick=True)[0].row(dict.fromkeys((*MEASURES, "seconds"), 0.5))
    assert set(row) == {
        "alignment", "finetuning", "regime", "headline", "task", "novel", "poison_ratio", "epochs", "seed",
        "learning_rate", "harmful_score", "finetune_accuracy", "over_refusal", "incoherent", "retention", "seconds",
        "purpose",
    }  # fmt: skip


def test_a_row_tells_which_cell_it_is_of():
    for cell in plan(quick=False):
        assert Cell.of(cell.row(dict.fromkeys((*MEASURES, "seconds"), 0.5))) == cell


def test_every_cell_is_of_the_whole_world_as_the_committed_figures_are():
    committed = json.loads((ROOT / "docs" / "demo" / "results.json").read_text(encoding="utf-8"))
    assert {cell.purpose for cell in plan(quick=False)} == {row.get("purpose") for row in committed["rows"]} == {None}


def test_the_headline_is_the_pair_on_one_task_and_budget_with_three_seeds():
    headline = [cell for cell in plan(quick=False) if cell.headline]
    assert {(c.alignment, c.finetuning) for c in headline} == set(PAIR)
    assert {c.seed for c in headline} == {0, 1, 2}
    assert {c.poison_ratio for c in headline} == {0.0, 0.2}
    assert len({(c.task, c.epochs, c.regime) for c in headline}) == 1


def test_quick_is_the_headline_of_one_seed_and_the_models_before_fine_tuning():
    cells = plan(quick=True)
    assert {c.seed for c in cells} == {0}
    assert all(c.headline or c.finetuning == "none" for c in cells)
    assert set(cells) < set(plan(quick=False))


def test_no_two_cells_share_a_folder():
    cells = plan(quick=False)
    assert len({cell.name for cell in cells}) == len(cells)
