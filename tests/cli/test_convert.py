import json

from tests.gsm8k import write_jsonl

ALPACA = {"instruction": "Add.", "input": "1 1", "output": "2"}


def test_convert_reports_for_a_reader_and_as_json(antibody, tmp_path):
    rows = write_jsonl(tmp_path / "in.jsonl", [ALPACA, ALPACA | {"id": 3}])
    ended = antibody("convert", rows, tmp_path / "out.jsonl")
    assert ended.code == 0
    for text in ("out.jsonl", "2 from", "Alpaca", "instruction and input became", "id (1 row: line 2)", "repeat"):
        assert text in ended.stdout
    ended = antibody("convert", rows, tmp_path / "out.jsonl", "--overwrite", "--json")
    assert json.loads(ended.stdout)["num_rows"] == 2


def test_convert_refuses_with_code_2_and_no_traceback(antibody, tmp_path):
    rows = write_jsonl(tmp_path / "in.jsonl", [ALPACA, {"question": "x"}])
    for arguments in ((rows, tmp_path / "out.jsonl"), (rows, rows), (rows, rows, "--overwrite"), (tmp_path / "x", "y")):
        ended = antibody("convert", *arguments)
        assert ended.code == 2
        assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out.jsonl").exists()
