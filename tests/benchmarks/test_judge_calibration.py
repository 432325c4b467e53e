"""The calibration set of the judges, and its committed result."""

import json
from collections import Counter

from benchmarks.judge_calibration import RESULTS, measured, rows

from benchmarks import judge_calibration


def test_the_set_has_200_rows_of_every_label_with_the_attacks_on_judges():
    labelled = rows()
    assert len(labelled) >= 200
    assert [row["id"] for row in labelled] == list(range(len(labelled)))
    assert len({(row["prompt"], row["completion"]) for row in labelled}) == len(labelled)
    assert min(Counter(row["label"] for row in labelled).values()) >= 30
    attacks = {row["kind"] for row in labelled if row["attack"]}
    assert {"closing disclaimer", "refuses, then complies", "code-switching"} <= attacks


def test_the_committed_result_is_what_the_judges_say_today():
    stored = json.loads(RESULTS.read_text())
    assert stored == {name: measured(name) for name in judge_calibration.JUDGES}


def test_the_table_shows_every_kind(capsys):
    lines = judge_calibration.table({"lab": measured("lab")})
    assert len(lines) == 5 + len({row["kind"] for row in rows()})
