"""The check of the GSM8K rule, on the rows of the repository."""

import json

from tests.gsm8k import SAMPLE, gsm8k_rows

from benchmarks import gsm8k_answers


def test_every_gold_answer_of_the_sample_is_found_in_every_way_of_writing_it(capsys):
    assert gsm8k_answers.main([str(SAMPLE)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(line.endswith(" 50 of 50") for line in lines)


def test_an_answer_that_is_not_found_is_named_by_its_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gsm8k_answers, "number_answer", lambda text: None)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in gsm8k_rows()[:2]), encoding="utf-8")
    assert gsm8k_answers.main([str(file)]) == 1
    assert "line 1, as it is: None instead of 72" in capsys.readouterr().out
