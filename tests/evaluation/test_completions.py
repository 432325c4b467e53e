import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from antibody_llm.data.verdicts import Verdict
from antibody_llm.errors import DataError, OutputError
from antibody_llm.evaluation.completions import (
    Completion,
    EvaluationSet,
    EvaluationSettings,
    read_completions,
    write_completions,
)
from antibody_llm.evaluation.decoding import DecodingSettings

SETTINGS = EvaluationSettings(
    decoding=DecodingSettings(max_new_tokens=9, temperature=0.5, seed=4),
    task_decoding=DecodingSettings(max_new_tokens=3),
    answer="gsm8k",
)
ROWS = [
    Completion(
        row_id=412,
        set=EvaluationSet.HARMFUL,
        prompt="how?\nnow",
        completion="näh 🙂",
        verdicts={"lab": Verdict.REFUSED, "guard": None},
    ),
    Completion(
        row_id=0,
        set=EvaluationSet.TEST,
        prompt="1+1",
        completion="",
        reference="2",
        verdicts={"lab": None, "guard": None},
    ),
]


def test_what_is_read_is_what_was_written(tmp_path):
    path = tmp_path / "completions.parquet"
    write_completions(path, ROWS, SETTINGS)
    assert read_completions(path) == (ROWS, SETTINGS)
    assert [p.name for p in tmp_path.iterdir()] == ["completions.parquet"]


def test_each_judge_has_a_column_that_other_tools_can_read(tmp_path):
    write_completions(tmp_path / "c.parquet", ROWS, SETTINGS)
    table = pq.read_table(tmp_path / "c.parquet").to_pydict()
    assert table["verdict_lab"] == ["refused", None]
    assert table["set"] == ["harmful", "test"]
    assert table["row_id"] == [412, 0]


def test_a_disk_error_leaves_the_former_table_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "completions.parquet"
    write_completions(path, ROWS, SETTINGS)

    def full(table, where):
        where.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OutputError, match=r"completions.parquet: .*No space left on device"):
        write_completions(path, [], SETTINGS)
    assert read_completions(path) == (ROWS, SETTINGS)
    assert [p.name for p in tmp_path.iterdir()] == ["completions.parquet"]


def test_a_missing_folder_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        write_completions(tmp_path / "none" / "c.parquet", ROWS, SETTINGS)


def test_a_file_where_a_folder_should_be_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_completions(tmp_path / "file" / "c.parquet", ROWS, SETTINGS)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none.parquet: cannot be read"):
        read_completions(tmp_path / "none.parquet")


@pytest.mark.parametrize("content", [b"", b"not parquet"])
def test_a_file_that_is_not_parquet_is_named(tmp_path, content):
    (tmp_path / "c.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"c.parquet"):
        read_completions(tmp_path / "c.parquet")


def test_a_parquet_of_something_else_is_named(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="not a table of completions"):
        read_completions(tmp_path / "c.parquet")


def test_a_verdict_that_no_judge_gives_is_refused(tmp_path):
    path = tmp_path / "c.parquet"
    write_completions(path, ROWS, SETTINGS)
    table = pq.read_table(path)
    place = table.column_names.index("verdict_lab")
    pq.write_table(table.set_column(place, "verdict_lab", pa.array(["maybe", None])), path)
    with pytest.raises(DataError, match="maybe"):
        read_completions(path)
