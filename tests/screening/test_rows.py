import json
import math

import pyarrow.parquet as pq
import pytest
import torch

from antibody_llm.errors import OutputError
from antibody_llm.screening import rows as module
from antibody_llm.screening.rows import Flag, RowTable, write_rows


@pytest.fixture
def table():
    """Lines 1, 2, 4, 5 and 6; the third repeats the first, the fourth is empty."""
    table = RowTable()
    table.set(table.append(1), 0.5, 1)
    table.set(table.append(2), -0.5, -1)
    table.append(4, [Flag.DUPLICATE], first=0)
    table.append(5, [Flag.EMPTY])
    table.set(table.append(6), 2.0, 0)
    return table


def test_scored_rows_are_those_with_evidence_and_a_duplicate_has_its_firsts(table):
    position, evidence, repeated = table.scored()
    assert position.tolist() == [0, 1, 2, 4]
    assert evidence.tolist() == [0.5, -0.5, 0.5, 2.0]
    assert repeated.tolist() == [False, False, True, False]
    assert table.times().tolist() == [2, 1, 0, 1, 1]
    assert [table.num(flag) for flag in Flag] == [1, 1, 0, 0, 0]


def test_probabilities_go_to_the_rows_they_were_made_of(table):
    rows = list(table.rows(torch.tensor([0.1, 0.2, 0.3, 0.4]).double(), ["no.", "never."]))
    assert [row["probability"] and round(row["probability"], 6) for row in rows] == [0.1, 0.2, 0.3, None, 0.4]
    assert [row["nearest_refusal"] for row in rows] == ["never.", None, "never.", None, "no."]
    assert [row["flags"] for row in rows] == [[], [], ["duplicate"], ["empty"], []]
    assert [row["line"] for row in rows] == [1, 2, 4, 5, 6]


def test_both_files_hold_every_row_also_across_groups(table, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_GROUP", 2)
    write_rows(tmp_path, lambda: table.rows(None, ["no.", "never."]))
    told = list(table.rows(None, ["no.", "never."]))
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == told
    assert pq.read_table(tmp_path / "rows.parquet").to_pylist() == told
    assert not any(isinstance(row["evidence"], float) and math.isnan(row["evidence"]) for row in told)


def test_rows_that_do_not_fit_on_the_disk_leave_what_was_there(table, tmp_path):
    (tmp_path / "rows.jsonl").write_text("before")

    def broken():
        yield next(table.rows(None, ["no.", "never."]))
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        write_rows(tmp_path, broken)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]
    assert (tmp_path / "rows.jsonl").read_text() == "before"


def test_a_row_bears_any_set_of_flags_and_a_duplicate_is_as_unfamiliar_as_its_first():
    table = RowTable()
    table.set(table.append(1, {Flag.CONTROL_TOKENS}), 0.6, -1, 1.5, unfamiliar=True)
    table.append(2, [Flag.DUPLICATE, Flag.CONTROL_TOKENS], first=0)
    table.append(3, [Flag.DUPLICATE], first=0)
    table.set(table.append(4), 0.1, -1, 0.5)
    table.append(5, {Flag.EMPTY, Flag.CONTROL_TOKENS})
    nothing = torch.tensor([math.nan, math.nan, math.nan, 0.25]).double()
    rows = list(table.rows(nothing, []))
    assert [row["flags"] for row in rows] == [
        ["unfamiliar", "control tokens"],
        ["duplicate", "unfamiliar", "control tokens"],
        ["duplicate", "unfamiliar"],
        [],
        ["empty", "control tokens"],
    ]
    assert [row["distance"] for row in rows] == [1.5, 1.5, 1.5, 0.5, None]
    assert [row["probability"] for row in rows] == [None, None, None, 0.25, None]
    assert {flag: table.num(flag) for flag in Flag} == {
        Flag.DUPLICATE: 2,
        Flag.EMPTY: 1,
        Flag.TOO_LONG: 0,
        Flag.UNFAMILIAR: 3,
        Flag.CONTROL_TOKENS: 3,
    }
    assert table.unfamiliar().tolist() == [True, True, True, False]
    assert table.num_far() == 3
