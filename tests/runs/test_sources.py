import pytest

from antibody_llm.errors import DataError
from antibody_llm.runs.sources import read_rows
from tests.gsm8k import write_jsonl

ROW = {"prompt": "a", "completion": "b"}


def test_rows_that_repeat_are_kept_and_counted_in_a_warning(tmp_path, caplog):
    path = write_jsonl(
        tmp_path / "rows.jsonl", [ROW, {"prompt": "c", "completion": "d"}, ROW, {"prompt": "A", "completion": "b"}]
    )
    assert len(read_rows(path, name="data rows", upload=True).records) == 4
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"{path}: 1 of 4 rows repeat an earlier one (line 3 as line 1); 1 of 4 differ from")
    caplog.clear()
    read_rows([ROW, ROW], name="data rows", upload=True)
    assert caplog.records[0].getMessage().startswith("data rows: 1 of 2 rows repeat")


def test_rows_that_do_not_repeat_or_are_the_provider_s_give_no_warning(caplog):
    read_rows([ROW, {"prompt": "c", "completion": "d"}], name="data rows", upload=True)
    read_rows([ROW, ROW], name="alignment_data rows")
    assert not caplog.records


def test_rows_given_in_python_are_checked_as_those_of_a_file():
    with pytest.raises(DataError, match="data rows, line 2, completion: the completion is empty"):
        read_rows([ROW, ROW | {"completion": ""}], name="data rows")
    loop: list = []
    loop.append(loop)
    for odd in (object(), loop):
        with pytest.raises(DataError, match="data rows: a row holds what JSON cannot"):
            read_rows([{"prompt": odd}], name="data rows")
