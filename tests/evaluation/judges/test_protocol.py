import pytest

from antibody_llm.data.verdicts import Verdict
from antibody_llm.errors import EvaluationError
from antibody_llm.evaluation.judges.protocol import require_verdicts


def test_rows_without_a_verdict_are_named_and_counted():
    verdicts = [Verdict.REFUSED, None, Verdict.COMPLIED, None]
    with pytest.raises(EvaluationError) as error:
        require_verdicts(verdicts, row_ids=[410, 412, 413, 500], measure="harmful_score", judge="guard")
    text = str(error.value)
    assert "'guard' gave no verdict on 2 of 4 completions (first: id 412, then 500)" in text
    assert "harmful_score is not reported" in text


def test_many_missing_rows_are_abridged():
    with pytest.raises(EvaluationError, match=r"first: id 0, then 1, 2, 3, 4, 5, 6, 7, 8, 9 and 3 more"):
        require_verdicts([None] * 13, row_ids=range(13), measure="x", judge="guard")


def test_complete_verdicts_pass_unchanged():
    verdicts = [Verdict.REFUSED, Verdict.INCOHERENT]
    assert require_verdicts(verdicts, row_ids=[1, 2], measure="x", judge="guard") == verdicts
