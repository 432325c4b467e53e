"""Weights of rows as counts."""

import math

import pyarrow as pa
import pyarrow.parquet as pq

from antibody_llm.server.working.weighing import CENTRES, weight_summary


def summary(tmp_path, rows):
    """The summary of rows of (row_id, epoch, weight, score)."""
    names = ("row_id", "epoch", "weight", "score")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns | {"line": [1] * len(rows)}), tmp_path / "samples.parquet")
    return weight_summary(tmp_path / "samples.parquet")


def test_a_weight_is_counted_where_its_power_of_two_is_nearest(tmp_path):
    weights = [0.0, 1e-9, 1 / 16, 0.7, 0.72, 1.0, 1.41, 1.42, 16.0, 1e6]
    (epoch,) = summary(tmp_path, [(i, 0, weight, None) for i, weight in enumerate(weights)])["epochs"]
    counted = {centre: count for centre, count in zip(CENTRES, epoch["counts"], strict=True) if count}
    assert counted == {1 / 16: 3, 1 / 2: 1, 1: 3, 2: 1, 16: 2}
    assert epoch["scores"] is None


def test_epochs_are_counted_apart_and_rows_that_the_defence_added_are_not(tmp_path):
    rows = [(0, 0, 1.0, 1.0), (1, 0, 1.0, 3.0), (-1, 0, 1.0, 99.0), (0, 1, 4.0, math.nan), (1, 1, 4.0, 2.0)]
    first, second = summary(tmp_path, rows)["epochs"]
    assert (sum(first["counts"]), first["scores"]) == (2, [1.5, 2.0, 2.5])
    assert (second["counts"][CENTRES.index(4)], second["scores"]) == (2, [2.0, 2.0, 2.0])


def test_without_samples_there_is_nothing_to_count(tmp_path):
    assert weight_summary(tmp_path / "samples.parquet") is None


def test_plain_fine_tuning_puts_every_row_into_the_middle(tmp_path):
    (epoch,) = summary(tmp_path, [(i, 0, 1.0, None) for i in range(5)])["epochs"]
    assert epoch["counts"] == [0, 0, 0, 0, 5, 0, 0, 0, 0]
