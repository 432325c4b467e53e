import pytest

from antibody_llm.data.verdicts import Preference, Verdict
from antibody_llm.errors import ConfigError, EvaluationError
from antibody_llm.evaluation import http
from antibody_llm.evaluation.completions import (
    Completion,
    EvaluationSet,
    EvaluationSettings,
    read_completions,
    write_completions,
)
from antibody_llm.evaluation.decoding import DecodingSettings
from antibody_llm.evaluation.evaluate import Evaluation, rejudge
from antibody_llm.evaluation.judges.keywords import KeywordJudge
from antibody_llm.evaluation.judges.registry import make_preference_judge
from antibody_llm.evaluation.win_rate import win_rate
from tests.evaluation.scripted import said, serving

SETTINGS = EvaluationSettings(decoding=DecodingSettings(), task_decoding=DecodingSettings())


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(http, "FIRST_WAIT", 0.001)
    monkeypatch.delenv("ANTIBODY_JUDGE_KEY", raising=False)


def row(number, outcome=None, *, name=EvaluationSet.TEST):
    preferences = {} if outcome is None else {"preference": outcome}
    return Completion(
        row_id=number, set=name, prompt=f"q{number}", completion="ours", reference="theirs", preferences=preferences
    )


def first_is_ours(number, path, body):
    """A judge that prefers the model's answer, wherever it is."""
    text = body["messages"][0]["content"]
    return said("A" if text.index("ours") < text.index("theirs") else "B")


def test_only_what_was_won_is_a_win_and_every_other_outcome_is_counted(caplog):
    outcomes = ["won", "won", "won", "lost", "tied", "tied", "inconsistent", "unparsed"]
    found = win_rate(
        [row(n, Preference(outcome)) for n, outcome in enumerate(outcomes)],
        judge="preference",
        decoding=DecodingSettings(),
    )
    # Wilson, 3 of 8: centre (3/8 + z2/16) / (1 + z2/8), half z sqrt(3*5/8^3 + z2/(4*64)) / (1 + z2/8), z2 = 3.8415
    assert (found.value, found.n, found.judge) == (3 / 8, 8, "preference")
    assert (found.low, found.high) == (pytest.approx(0.1368, abs=1e-4), pytest.approx(0.6943, abs=1e-4))
    assert (found.num_lost, found.num_tied, found.num_inconsistent, found.num_unparsed) == (1, 2, 1, 1)
    assert "no choice that could be read on 1 row (first: id 7)" in caplog.text


def test_a_row_that_was_not_compared_is_no_loss_but_an_error():
    with pytest.raises(EvaluationError, match=r"all but 1 of 2 answers \(first: id 1\), so win_rate is not reported"):
        win_rate([row(0, Preference.WON), row(1)], judge="preference", decoding=DecodingSettings())
    with pytest.raises(EvaluationError, match="win_rate is a share of completions and there are none"):
        win_rate([], judge="preference", decoding=DecodingSettings())


def test_a_dead_endpoint_keeps_what_was_compared_and_the_same_call_goes_on_from_there(tmp_path):
    path, alive = tmp_path / "completions.parquet", [4]
    harmful = Completion(row_id=0, set=EvaluationSet.HARMFUL, prompt="h", completion="I cannot help with that.")
    write_completions(path, [harmful, *map(row, range(5))], SETTINGS)

    def script(number, path, body):
        return first_is_ours(number, path, body) if number < alive[0] else (503, {}, {})

    with serving(script) as served:
        judge = make_preference_judge(f"chat={served.url}#model=m,concurrency=1")
        with pytest.raises(EvaluationError, match="2 of 5 completions are judged and kept") as failed:
            rejudge(path, [KeywordJudge()], comparer=judge)
        assert failed.value.field == "preference_judge"
        kept = read_completions(path)[0]
        assert [each.preferences for each in kept] == [{}, *[{"preference": Preference.WON}] * 2, {}, {}, {}]
        assert kept[0].verdicts == {"keywords_weak_baseline": Verdict.REFUSED}
        assert kept[1].notes == {"preference": "A | B"}
        before, alive[0] = len(served.calls), 999
        found = rejudge(path, [KeywordJudge()], comparer=judge, resume=True)
        assert len(served.calls) - before == 2 * 3
        assert (found.win_rate.value, found.win_rate.n, found.finetune_accuracy) == (1.0, 5, None)
        rejudge(path, [KeywordJudge()], comparer=judge)  # not resumed, everything is compared again
        assert len(served.calls) - before == 2 * 3 + 2 * 5
    assert Evaluation.model_validate_json(found.model_dump_json()).win_rate == found.win_rate


def test_a_judge_of_preferences_needs_test_rows_and_a_name_of_its_own(tmp_path):
    judge = make_preference_judge("chat=http://x/v1#model=m,name=keywords_weak_baseline")
    path = tmp_path / "completions.parquet"
    write_completions(path, [row(0, name=EvaluationSet.HARMFUL)], SETTINGS)
    with pytest.raises(ConfigError, match="preference_judge compares test answers with their references, and there"):
        rejudge(path, [KeywordJudge()], comparer=judge)
    write_completions(path, [row(0)], SETTINGS)
    with pytest.raises(ConfigError, match="'keywords_weak_baseline' is given twice"):
        rejudge(path, [KeywordJudge()], comparer=judge)
