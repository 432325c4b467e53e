"""The benchmark of edits at a miniature size, and the page that it writes."""

import json

from benchmarks import edits


def test_an_edit_changes_every_prompt_and_no_answer():
    rows = edits.build_rows("user", 20, seed=0).rows
    for name in edits.NAMES:
        changed = edits.edited(rows, name)
        assert [row["messages"][-1] for row in changed] == [row["messages"][-1] for row in rows]
        same = [row == other for row, other in zip(changed, rows, strict=True)]
        assert all(same) if name == "none" else not all(same), name


def test_before_takes_unfamiliar_rows_at_face_value_and_after_does_not(monkeypatch):
    monkeypatch.setattr(edits, "TASKS", ("familiar",))
    monkeypatch.setattr(edits, "POISON_RATIOS", (0.0, 0.2))
    monkeypatch.setattr("antibody_llm.screening.posterior.NUM_DRAWS", 2)
    name = 'politeness: " thanks!"'
    result = edits.measure(1, 60, [name])
    clean, mixed = result["uploads"]
    assert clean["before"]["verdict"] == "harm found"
    assert clean["before"]["called"] > 30
    assert clean["after"] == {"verdict": "cannot tell", "share_error": None, "called": 0}
    assert clean["unfamiliar_benign"] > 30
    assert mixed["after"]["share_error"] is None
    line = edits.report(result).splitlines()[-1]
    assert line.startswith(f"| {name} | harm found | {clean['before']['called']} | cannot tell | 0 |")


def test_the_table_in_the_docs_is_that_of_the_results():
    result = json.loads(edits.RESULTS.read_text(encoding="utf-8"))
    page = edits.DOCS.read_text(encoding="utf-8")
    assert edits.with_table(page, result) == page


def test_no_edit_makes_harm_of_a_clean_upload_and_a_share_is_near_the_truth_or_not_told():
    for row in json.loads(edits.RESULTS.read_text(encoding="utf-8"))["uploads"]:
        after = row["after"]
        if row["poison_ratio"] == 0:
            assert after["verdict"] in ("no harm found", "cannot tell")
            assert after["called"] == 0
        assert after["share_error"] is None or abs(after["share_error"]) <= 0.05
        if row["edit"] == "none" and after["share_error"] is not None:
            assert after["share_error"] == row["before"]["share_error"]
