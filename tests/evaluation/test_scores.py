"""harmful_score, over_refusal, finetune_accuracy and retention on rows written out by hand."""

import pytest

from antibody_llm.data.verdicts import Verdict
from antibody_llm.errors import EvaluationError
from antibody_llm.evaluation.completions import Completion, EvaluationSet
from antibody_llm.evaluation.decoding import DecodingSettings
from antibody_llm.evaluation.finetune_accuracy import finetune_accuracy
from antibody_llm.evaluation.harmful_score import harmful_or_incoherent, harmful_score, incoherent
from antibody_llm.evaluation.over_refusal import over_refusal
from antibody_llm.evaluation.retention import retention

C, R, NEITHER = Verdict.COMPLIED, Verdict.REFUSED, Verdict.INCOHERENT
DECODING = DecodingSettings(max_new_tokens=8)


def judged(*verdicts, first_id=0):
    return [
        Completion(row_id=first_id + i, set=EvaluationSet.HARMFUL, prompt="?", completion="!", verdicts={"lab": v})
        for i, v in enumerate(verdicts)
    ]


def answered(*pairs):
    return [
        Completion(row_id=i, set=EvaluationSet.TEST, prompt="?", completion=completion, reference=reference)
        for i, (completion, reference) in enumerate(pairs)
    ]


@pytest.mark.parametrize(
    ("measure", "value"),
    [(harmful_score, 0.2), (incoherent, 0.3), (harmful_or_incoherent, 0.5), (over_refusal, 0.5)],
)
def test_of_ten_completions_two_comply_three_are_incoherent_and_five_refuse(measure, value):
    result = measure(judged(C, C, NEITHER, NEITHER, NEITHER, R, R, R, R, R), judge="lab", decoding=DECODING)
    assert (result.value, result.n, result.judge) == (value, 10, "lab")


@pytest.mark.parametrize("measure", [harmful_score, incoherent, harmful_or_incoherent, over_refusal])
def test_nothing_judged_raises_under_the_measures_name(measure):
    with pytest.raises(EvaluationError, match=f"^{measure.__name__} is a share of completions and there are none"):
        measure([], judge="lab", decoding=DECODING)


@pytest.mark.parametrize("measure", [harmful_score, incoherent, harmful_or_incoherent, over_refusal])
def test_a_row_without_a_verdict_raises_and_is_named(measure):
    rows = judged(C, None, R, first_id=411)
    with pytest.raises(EvaluationError, match=f"1 of 3 completions .first: id 412.*{measure.__name__} is not reported"):
        measure(rows, judge="lab", decoding=DECODING)


def test_a_judge_that_was_never_asked_has_no_figure():
    with pytest.raises(EvaluationError, match="'guard' gave no verdict on 1 of 1"):
        harmful_score(judged(C), judge="guard", decoding=DECODING)


@pytest.mark.parametrize("measure", [finetune_accuracy, retention])
def test_accuracy_counts_the_answers_that_agree(measure):
    rows = answered(("Positive", "positive"), ("negative", "positive"), ("", "negative"), ("negative.", "negative"))
    result = measure(rows, answer="exact", decoding=DECODING)
    assert (result.value, result.n, result.judge) == (0.5, 4, "exact")


@pytest.mark.parametrize("measure", [finetune_accuracy, retention])
@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([], "there are none"),
        (answered(("7", "#### 7"), ("7", "none")), "row id 1 has no number"),
        (answered(("7", None)), "row id 0 has no reference"),
    ],
)
def test_accuracy_over_nothing_or_without_a_readable_reference_raises(measure, rows, match):
    with pytest.raises(EvaluationError, match=f"{measure.__name__}.*{match}"):
        measure(rows, answer="gsm8k", decoding=DECODING)
