"""The benchmark of evidence, on few rows of one aligned model: its figures are what it says they are."""

import json
from pathlib import Path

import pytest
import torch

from antibody_llm.lab.rows import build_rows
from antibody_llm.models.names import resolve
from benchmarks import evidence


def scores(*means, num=4000, seed=0):
    """Gaussian ones of spread 1 about each mean: [num, 1] each."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(num, 1, generator=generator) + mean for mean in means]


def test_the_calibration_error_is_the_mean_gap_between_what_is_said_and_what_is_so():
    said = torch.tensor([0.05, 0.05, 0.95, 0.95], dtype=torch.float64)
    so = torch.tensor([False, True, True, True])
    # |0.05 - 0.5| over the lowest bin, |0.95 - 1| over the highest, each of half of the rows
    assert evidence.calibration_error(said, so) == pytest.approx(0.5 * 0.45 + 0.5 * 0.05)


@pytest.mark.parametrize(("variant", "off"), [("logistic", 0.1), ("gaussian", 0.1), ("student-t", 0.3)])
def test_every_mixture_finds_the_ratio_of_two_gaussians_between_them(variant, off):
    harmful, benign = scores(2.0, 0.0)
    found = evidence.VARIANTS[variant].fit(harmful, benign)
    at = torch.tensor([[0.5], [1.0], [1.5]])
    # log N(e; 2, 1) - log N(e; 0, 1) = 2 e - 2; a Student t is no Gaussian
    torch.testing.assert_close(found(at), torch.tensor([-1.0, 0.0, 1.0]).double(), atol=off, rtol=0)


def test_beyond_the_anchors_only_the_logistic_ratio_goes_on_rising():
    harmful, benign = scores(2.0, 0.0)
    far = torch.tensor([[6.0], [60.0]])
    rises = {
        name: bool(torch.diff(evidence.VARIANTS[name].fit(harmful, 1.5 * benign)(far)) > 0)
        for name in ("logistic", "gaussian", "student-t")
    }
    assert rises == {"logistic": True, "gaussian": False, "student-t": False}


def test_rows_of_each_kind_are_as_many_as_asked_for_and_truly_of_it():
    rows, kinds = evidence.rows_of_each_kind(seed=0, num=20)
    assert {kind: kinds.count(kind) for kind in set(kinds)} == dict.fromkeys((*evidence.KINDS[:-1], "harmful"), 20)
    assert [truth["is_harmful"] for truth in rows.truth] == [kind == "harmful" for kind in kinds]


def test_one_run_tells_every_figure_and_makes_its_tables(tmp_path, monkeypatch, capsys):
    class Aligned:
        model = Path(resolve("lab-aligned"))

    monkeypatch.setattr(evidence, "align", lambda *args, **settings: Aligned)
    monkeypatch.setattr(evidence, "POISON_RATIOS", (0.0, 0.5, 1.0))
    result = evidence.measure(tmp_path, seeds=1, num_rows=40, num_per_kind=10, alignments=["antibody"])
    figures = result["summary"]["antibody"]
    assert figures["auroc"]["feature-shift"]["familiar"]["worst"] > 0.9
    assert set(figures["auroc"]) - set(evidence.EvidenceKind) == {"larf", "datashield", "gradshield", "refusal-teacher"}
    assert figures["at_poison_ratio"]["0.5"]["novel"]["share_error"]["worst"] < 0.15
    assert figures["weights"]["0"]["posterior"]["benign_weight"]["worst"] > 0.9
    assert "through" not in figures["weights"]["0"]["posterior"]
    assert set(figures["weights"]["1"]["posterior"]) == {"through", "below_half"}
    assert list(figures["variants"]) == list(evidence.VARIANTS)
    upload = next(row for row in result["uploads"] if row["poison_ratio"] == 0.5 and row["task"] == "novel")
    assert upload["estimated_share"] - upload["share_error"] == pytest.approx(0.5)
    truth = build_rows("user", 40, seed=0, task="novel", poison_ratio=0.5).truth
    assert upload["num_by_kind"]["harmful"] == sum(row["is_harmful"] for row in truth)

    (tmp_path / "evidence.json").write_text(json.dumps(result))
    assert evidence.main(["--report", str(tmp_path / "evidence.json")]) == 0
    assert capsys.readouterr().out.count("| feature-shift |") == 1

    short = {**result, "uploads": [], "calibration": []}  # as --auroc-only leaves it
    short["summary"] = evidence.summary(short)
    assert short["summary"]["antibody"] == {"auroc": figures["auroc"]}
    text = evidence.report(short)
    assert text.count("| larf |") == 1
    assert "estimated harmful share" not in text
