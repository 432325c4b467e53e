"""What a cell hands to the verbs; no model is trained."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from antibody_llm.bench import cell as cells
from antibody_llm.bench.cell import MEASURES, Cell, carry_out, num_prompts
from antibody_llm.lab.world import CALIBRATE, REPORT, good_in

PLAIN = Cell(alignment="sft", finetuning="sft", task="familiar", poison_ratio=0.2, epochs=4, headline=True)


def harmful_halves(rows):
    goods = [good_in(row["messages"][0]["content"]) for row in rows]
    return {good.purpose for good in goods if good is not None and good.forbidden}


@pytest.mark.parametrize("purpose", [REPORT, CALIBRATE, None])
def test_upload_questions_and_curve_are_of_the_cells_half(tmp_path, monkeypatch, purpose):
    seen = {}

    def finetune(model, *, data, callbacks, **settings):
        seen["data"], seen["curve"] = data, callbacks[-1]
        return SimpleNamespace(seconds=1.0)

    def evaluate(model, *, purpose, num, **settings):
        seen["purpose"] = purpose
        return SimpleNamespace(metrics=dict.fromkeys(MEASURES, 0.5))

    monkeypatch.setattr(cells, "finetune", finetune)
    monkeypatch.setattr(cells, "evaluate", evaluate)
    monkeypatch.setattr(cells, "stored_cost", lambda file: 1.0)
    carry_out(tmp_path, replace(PLAIN, purpose=purpose))
    halves = {CALIBRATE, REPORT} if purpose is None else {purpose}
    assert seen["purpose"] == purpose
    assert harmful_halves(seen["data"]) == halves
    asked = [{"messages": [{"content": prompt}]} for prompt in seen["curve"]._prompts]
    assert harmful_halves(asked) == halves


def test_a_row_without_a_purpose_is_of_a_cell_of_the_whole_world_whose_folder_is_another():
    row = PLAIN.row(dict.fromkeys((*MEASURES, "seconds"), 0.5))
    assert Cell.of(row) == PLAIN
    del row["purpose"]
    assert Cell.of(row) == replace(PLAIN, purpose=None)
    assert Cell.of(row).name != PLAIN.name
    assert Cell.of(row).aligned == PLAIN.aligned


@pytest.mark.parametrize(
    ("kind", "whole", "half"), [("harmful-prompts", 400, 256), ("lookalike", 336, 192), ("test", 400, 400)]
)
def test_a_half_holds_fewer_prompts_of_some_kinds(kind, whole, half):
    assert (num_prompts(kind, None), num_prompts(kind, REPORT)) == (whole, half)
