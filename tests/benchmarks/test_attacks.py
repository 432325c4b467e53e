"""The page of attacks is made from its results; no model is trained."""

import json
from pathlib import Path

import pytest
from benchmarks.attacks import SETTINGS, gain, page

from antibody_llm.attacks.attack import Access
from antibody_llm.attacks.catalogue import CATALOGUE
from antibody_llm.lab.world import REPORT, good_in
from benchmarks import attacks

ROOT = Path(__file__).resolve().parents[2]


def row(attack, harmful_score, **more):
    plain = {
        "finetune_accuracy": 1.0,
        "over_refusal": 0.0,
        "incoherent": 0.0,
        "exact": harmful_score,
        "auroc": 0.9,
        "auroc_alike": 0.5,
        "auroc_form": 0.75,
    }
    about = {"attack": attack, "task": "novel", "seed": 0, "poison_ratio": SETTINGS[attack].poison_ratio}
    return about | plain | {"harmful_score": harmful_score} | more


ROWS = [
    row("clean", 0.1, auroc=None),
    row("mixing", 0.6),
    row("mixing", 0.8, seed=1),
    row("backdoor", 0.2, asked=0.9, asked_before=0.1, asked_exact=0.9, asked_exact_before=0.0),
    row("pointwise", 0.1, asked=0.0, asked_before=0.0, asked_exact=0.0, given_away=0.5, given_away_before=0.1),
    row("all mixing", 1.0),
    row("all two-stage", 0.4),
]


@pytest.mark.parametrize(
    ("name", "plain", "own"),
    [("backdoor", -0.5, 0.2), ("pointwise", -0.6, -0.2), ("all two-stage", -0.6, None), ("mixing", 0.0, None)],
)
def test_a_gain_is_over_mixing_at_the_same_ratio(name, plain, own):
    found = gain(ROWS, name, "novel")
    assert found[0] == pytest.approx(plain)
    assert found[1] is None if own is None else found[1] == pytest.approx(own)


def test_the_page_says_what_gains_and_what_does_not():
    made = page(ROWS)
    assert "| backdoor | 20.0 | 20.0 | 90.0 | 10.0 | 90.0 | 0.0 | - | -50.0 | +20.0 | 0.90 | 0.50 | 0.75 |" in made
    assert "| mixing | 70.0 | 70.0 | - | - | - | - | - | - | - | 0.90 | 0.50 | 0.75 | 100.0 | 0.0 | 0.0 | 2 |" in made
    assert "- **backdoor** gains in its own form +20.0 points on the novel task (novel: +10.0 over" in made
    assert "- **all two-stage** gains nothing over mixing here (novel: +30.0 over clean rows)." in made


def test_every_attack_on_rows_is_a_setting_and_the_others_are_on_pairs():
    run = {setting.attack for setting in SETTINGS.values()}
    on_pairs = {name for name, attack in CATALOGUE.items() if Access.PREFERENCES in attack.needs}
    assert run | on_pairs == set(CATALOGUE)
    assert not run & on_pairs
    assert set(attacks.WHY) <= set(SETTINGS)
    for setting in SETTINGS.values():
        CATALOGUE[setting.attack].options(**setting.options)


def test_the_page_in_the_docs_is_that_of_its_results():
    results = json.loads((ROOT / "benchmarks" / "results" / "attacks.json").read_text(encoding="utf-8"))
    assert page(results["rows"]) == (ROOT / "docs" / "attacks.md").read_text(encoding="utf-8")


def test_the_page_says_which_part_of_the_world_it_is_of():
    assert "are of the whole of the lab's world; the commands now take its half for `report`." in page(ROWS)
    assert "are of the half of the lab's world for `report`." in page([one | {"purpose": REPORT} for one in ROWS])


def test_a_folder_of_cells_of_the_whole_world_is_not_gone_on_with(tmp_path, capsys):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "mixing-novel-0.json").write_text(json.dumps(ROWS[1]))
    with pytest.raises(SystemExit):
        attacks.main(["--output", str(tmp_path)])
    assert "cells: some rows are of the whole of the lab's world, others of the half" in capsys.readouterr().err


def test_what_is_uploaded_is_of_the_half_for_reports():
    made = attacks.crafted(SETTINGS["mixing"], "novel", 0, ROOT, lambda rows: [0.0] * len(rows))
    asked = [good_in(row["messages"][0]["content"]) for job in made.jobs for row in job.rows]
    assert {good.purpose for good in asked if good is not None and good.forbidden} == {REPORT}


def test_a_wrong_name_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        attacks.main(["--output", str(tmp_path), "--only", "mixin"])
    assert "there is no 'mixin'" in capsys.readouterr().err
