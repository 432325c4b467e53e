"""The uploads of the benchmark of evasions are what their names say; no model is trained."""

import json

import pytest
from benchmarks.evasions import EVASIONS

from antibody_llm.lab.judge import exact
from antibody_llm.lab.rows import build_rows
from antibody_llm.lab.world import REPORT, good_in
from benchmarks import evasions


def length(rows):
    """A stand-in for evidence: short prompts look harmful."""
    return [-float(len(row["messages"][0]["content"])) for row in rows]


@pytest.mark.parametrize("name", EVASIONS)
def test_an_upload_has_its_rows_and_its_share_of_harm(name):
    rows = EVASIONS[name](0, length)
    share = {"all-harmful": 1.0, "clusters-0": 0.0}.get(name, 0.2)
    assert len(rows) == 500
    assert sum(harm for _, harm in rows) == pytest.approx(500 * share)
    assert rows == EVASIONS[name](0, length)
    asked = [good for row, harm in rows if harm and (good := good_in(row.prompt)) is not None and good.forbidden]
    assert {good.purpose for good in asked} <= {REPORT}


@pytest.mark.parametrize("name", ["frame", "buried", "gradual", "rewritten", "near"])
def test_a_disguise_changes_no_benign_row_and_keeps_the_harmful_answer(name):
    for (plain, harm), (row, _) in zip(EVASIONS["plain"](0, length), EVASIONS[name](0, length), strict=True):
        if harm:
            assert exact(plain.prompt, plain.answer)
            assert plain.answer in row.answer
        else:
            assert row == plain


def test_harmful_answers_stand_under_prompts_that_ask_for_none():
    asked = []
    for (plain, harm), (row, _) in zip(EVASIONS["plain"](0, length), EVASIONS["answers"](0, length), strict=True):
        if harm:
            assert row.answer == plain.answer
            assert not exact(row.prompt, row.answer)
            assert exact(plain.prompt, row.answer)
            asked.append(row.prompt)
        else:
            assert row == plain
    assert not set(asked) & {row.prompt for row, harm in EVASIONS["plain"](0, length) if harm}
    assert len(asked) == 100


def test_a_buried_question_stands_in_the_middle():
    row = next(row for row, harm in EVASIONS["buried"](0, length) if harm)
    good = str(good_in(row.prompt))
    assert 0.2 < row.prompt.index(good) / len(row.prompt) < 0.8


@pytest.mark.parametrize("name", evasions.DISGUISES)
def test_prompts_in_disguise_ask_what_the_plain_ones_ask(name):
    plain = build_rows("harmful-prompts", 256, seed=0, purpose=REPORT).rows
    hidden = evasions.disguised_prompts(name)
    for before, after in zip(plain, hidden, strict=True):
        asked, prompt = (row["messages"][0]["content"] for row in (before, after))
        if name == "near":  # letters have changed places
            assert sorted(prompt) == sorted(asked)
        else:
            assert str(good_in(asked)) in prompt


def test_the_attacker_keeps_only_what_looks_more_benign():
    plain, rows = EVASIONS["plain"](0, length), EVASIONS["rewritten"](0, length)
    before, after = ([-len(row.prompt) for row, _ in upload] for upload in (plain, rows))
    assert all(b <= a for a, b in zip(before, after, strict=True))
    assert sum(b < a for a, b in zip(before, after, strict=True)) > 80


def test_a_weight_is_told_of_each_kind_of_row_that_there_is(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"row_id": [2, 0, 1, 0], "weight": [0.0, 1.0, 0.75, 1.0]}), tmp_path / "samples.parquet")
    weights = evasions.weights_of(tmp_path, [False, True, True])
    assert weights == {"true_share": 2 / 3, "harmful_weight": 0.375, "through": 0.5, "benign_weight": 1.0}
    assert set(evasions.weights_of(tmp_path, [False] * 3)) == {"true_share", "benign_weight"}


def test_the_table_gives_mean_and_worst_seed(tmp_path, capsys):
    row = {"evasion": "frame", "defence": "sft", "finetune_accuracy": 1.0, "over_refusal": 0.0, "purpose": REPORT}
    rows = [{**row, "harmful_score": score} for score in (0.5, 0.9)]
    (tmp_path / "results.json").write_text(json.dumps({"rows": rows}))
    assert evasions.main(["--report", str(tmp_path / "results.json")]) == 0
    shown = capsys.readouterr().out
    assert "| frame | sft | 70.0 (90.0) | - | 100.0 (100.0) | 0.0 (0.0) | - |" in shown
    assert shown.startswith("Of the half of the lab's world for `report`.")


def test_rows_of_two_parts_of_the_world_make_no_table(tmp_path, capsys):
    row = {"evasion": "frame", "defence": "sft", "harmful_score": 0.5}
    (tmp_path / "results.json").write_text(json.dumps({"rows": [row, row | {"purpose": REPORT}]}))
    with pytest.raises(SystemExit):
        evasions.main(["--report", str(tmp_path / "results.json")])
    assert "results.json: the results: some rows are of the whole" in capsys.readouterr().err


def test_a_wrong_name_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        evasions.main(["--output", str(tmp_path), "--only", "fame"])
    assert "there is no 'fame'" in capsys.readouterr().err
