"""Answers of a screening: what reads as harm is marked where it stands."""

import json

import pytest
import torch
from tests.tinylm import tiny_tokenizer

from antibody_llm.data.encode import Renderer
from antibody_llm.data.records import Template, TokenizedRow
from antibody_llm.errors import ModelError
from antibody_llm.likelihood.tokens import TokenTable
from antibody_llm.primitives.mixture import LogRatio
from antibody_llm.screening import answers as module
from antibody_llm.screening.answers import AnswerFound, AnswerReader
from antibody_llm.screening.report import marked
from antibody_llm.screening.rows import RowTable
from antibody_llm.screening.token_evidence import TokenProbe, TokenRule

ROW = TokenizedRow(0, (5, 6, 10, 11, 12, 2, 7, 13, 14, 2), ((2, 6), (7, 10)), Template.TEXT)
"""Two answers: t10 t11 t12 and t13 t14."""


def rule(auroc=1.0):
    steep = LogRatio(torch.tensor([1.0], dtype=torch.float64), -0.5)
    return TokenRule(TokenProbe(torch.zeros(1), 0.0), steep, steep, auroc, (torch.ones(2), torch.zeros(2)))


@pytest.fixture
def reader(monkeypatch, tmp_path):
    """Reads as evidence whatever the test puts into ``says``, and counts the rows that it reads."""
    monkeypatch.setenv("ANTIBODY_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "stored_token_rule", lambda models, anchors: rule())
    made = AnswerReader(None, Renderer(tiny_tokenizer(), max_length=128), None, b"models")
    made.says, made.num_read = [0.0] * 7, 0

    def read(models, probe, rows):
        made.num_read += len(rows)
        return TokenTable(
            torch.tensor(made.says * len(rows)), {row.row_id: (7 * i, 7 * i + 7) for i, row in enumerate(rows)}
        )

    monkeypatch.setattr(module, "read_token_evidence", read)
    return made


def nothing(part):
    pass


def test_a_span_is_in_characters_of_its_own_answer(reader):
    reader.says = [0.0, 1.0, 1.0, 0.0, 0.0, 0.9, 0.0]
    (found,) = reader.read([ROW], nothing)
    assert found == AnswerFound(1.0, ((0, 3, 11), (1, 3, 7)))
    assert "t10 t11 t12"[3:11] == " t11 t12"
    turns = (("user", "t5"), ("assistant", "t10 t11 t12"), ("user", "t7"), ("assistant", "t13 t14"))
    parts = dict(enumerate(text for _, text in marked(turns, found.spans)))
    assert parts[0] == (("t5", False),)
    assert parts[1] == (("t10", False), (" t11 t12", True))
    assert parts[3] == (("t13", False), (" t14", True))


def test_a_row_that_reads_harmless_has_no_span_and_is_not_read_again(reader):
    reader.says = [0.4] * 7
    first = reader.read([ROW], nothing)
    assert first[0].spans == ()
    assert reader.read([ROW], nothing)[0].evidence == pytest.approx(first[0].evidence)
    assert reader.num_read == 1


def test_a_row_with_a_span_is_read_again_for_it(reader):
    reader.says = [1.0] * 7
    assert reader.read([ROW], nothing) == reader.read([ROW], nothing)
    assert reader.num_read == 2


def test_answers_that_read_alike_are_not_judged(monkeypatch, tmp_path):
    monkeypatch.setenv("ANTIBODY_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "stored_token_rule", lambda models, anchors: rule(auroc=0.6))
    with pytest.raises(ModelError, match="AUROC 0.600, at least 0.800"):
        AnswerReader(None, None, None, b"models")


def test_a_duplicate_shares_the_spans_and_the_probability_of_its_row():
    table = RowTable()
    first = table.append(1)
    table.append(2, first=first)
    table.append(3)
    table.set(first, 0.1, -1)
    table.set_answer(first, AnswerFound(1.5, ((0, 3, 9),)))
    evidence, repeated = table.answers()
    assert evidence.tolist() == [1.5, 1.5]
    assert repeated.tolist() == [False, True]
    rows = list(table.rows(None, (), torch.tensor([0.9, 0.8])))
    assert [row["answer_probability"] for row in rows] == [pytest.approx(0.9), pytest.approx(0.8), None]
    assert [row["spans"] for row in rows] == [[[0, 3, 9]], [[0, 3, 9]], []]
    assert json.loads(json.dumps(rows)) == rows
