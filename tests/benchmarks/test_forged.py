import json
from pathlib import Path

from benchmarks import forged

ROOT = Path(forged.__file__).resolve().parents[1]
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "forged.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "inputs.md").read_text(encoding="utf-8")


def test_the_page_shows_the_committed_results():
    assert forged.markdown(RESULTS["rows"]) in PAGE
    before = [row["harmful_score"] for row in RESULTS["before"]]
    assert f"the first of them ended at {100 * max(before):.1f}" in PAGE
    accuracy = {arm: [r["finetune_accuracy"] for r in RESULTS["rows"] if r["arm"] == arm] for arm in forged.ARMS}
    assert f"to {100 * min(accuracy['text']):.1f} in the worst seed ({100 * min(accuracy['words']):.1f} without" in PAGE
    assert f"{100 * min(accuracy['without']):.1f} without those rows" in PAGE


def test_left_out_rows_leave_the_run_without_them():
    of = {(row["arm"], row["seed"]): row for row in RESULTS["rows"] if row["spelling"] == "own"}
    for seed in range(3):
        one, other = of["refuse", seed], of["without", seed]
        assert {**one, "arm": ""} == {**other, "arm": ""}


def test_every_spelling_is_flagged_in_a_fifth_of_the_rows_and_makes_no_token():
    for name in forged.SPELLINGS:
        sent, bare, kept = forged.uploads(name, 0)
        assert forged.looked_at(sent[:20]) == {"spelling_rows": 4, "forged_ids": 0}
        assert forged.looked_at(bare[:20]) == {"spelling_rows": 0, "forged_ids": 0}
        assert len(kept) == 512
