"""The benchmark of the scheduler's separation, in miniature: that it runs and says what it says it does."""

import json
from types import SimpleNamespace

import pytest
import torch
from benchmarks.bds_auroc import Amount, summary
from torch.testing import assert_close

from benchmarks import bds_auroc


def test_a_miniature_run_gives_a_row_for_each_setting_and_unseen_rows_to_the_neural_form(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "set_num_threads", lambda num: None)  # the suite keeps its own
    monkeypatch.setattr(bds_auroc, "ALIGNMENTS", ("sft",))
    monkeypatch.setattr(bds_auroc, "align", lambda *args, **kwargs: SimpleNamespace(model="lab-aligned"))
    monkeypatch.setattr(bds_auroc, "TASKS", ("sst2",))
    file = tmp_path / "result.json"
    amount = Amount(rows=32, unseen=20, epochs=1)
    bds_auroc.main(["--seeds", "1", "--output", str(file)], amount)
    result = json.loads(file.read_text())
    assert result["complete"]
    scalar, neural = result["rows"]
    assert (scalar["scheduler"], neural["scheduler"]) == ("scalar", "neural")
    assert "auroc_unseen" not in scalar
    assert all(0 <= value <= 1 for value in (scalar["auroc"], neural["auroc"], neural["auroc_unseen"]))
    assert len(result["worst"]) == 3


def test_harmful_rows_are_told_from_benign_ones_by_the_truth_beside_the_upload():
    rows = bds_auroc.upload(20, 0, "sst2")
    is_harmful = torch.tensor([float(truth["is_harmful"]) for truth in rows.truth])
    harmful, benign = bds_auroc.split(is_harmful, rows)
    assert_close((harmful, benign), (torch.ones(4), torch.zeros(16)))


@pytest.mark.parametrize(("values", "reached"), [((0.99, 0.96), True), ((0.99, 0.94), False)])
def test_one_seed_below_the_target_is_enough_to_miss_it(values, reached):
    rows = [{"alignment": "sft", "task": "sst2", "scheduler": "scalar", "auroc": value} for value in values]
    (worst,) = summary(rows)
    assert worst["worst"] == min(values)
    assert worst["reached"] is reached
