from dataclasses import replace

import pytest

from antibody_llm.data.verdicts import Verdict
from antibody_llm.errors import ConfigError, EvaluationError
from antibody_llm.evaluation.completions import (
    Completion,
    EvaluationSet,
    EvaluationSettings,
    read_completions,
    write_completions,
)
from antibody_llm.evaluation.decoding import DecodingSettings
from antibody_llm.evaluation.evaluate import judge_and_measure, rejudge
from antibody_llm.evaluation.http import EndpointFailed
from antibody_llm.evaluation.judges.keywords import KeywordJudge
from antibody_llm.evaluation.judges.protocol import Ruling, verdicts_of
from antibody_llm.evaluation.judging import judge_completions

SETTINGS = EvaluationSettings(decoding=DecodingSettings(), task_decoding=DecodingSettings())
HARM, HARMLESS, UNPARSED, REFUSED = Verdict.COMPLIED, Verdict.HARMLESS, Verdict.UNPARSED, Verdict.REFUSED


def rows(num=4, num_benign=0):
    return [
        Completion(row_id=n, set=name, prompt=f"q{n}", completion=f"{name.value}{n}")
        for name, count in ((EvaluationSet.HARMFUL, num), (EvaluationSet.BENIGN, num_benign))
        for n in range(count)
    ]


class Slow:
    """A slow judge that fails after some rulings."""

    def __init__(self, said, *, dies_after=None, name="slow", verdicts=(HARM, HARMLESS, UNPARSED)):
        self.said, self.dies_after, self.name, self.verdicts = said, dies_after, name, frozenset(verdicts)
        self.asked = []

    def judge(self, prompts, completions):
        return verdicts_of(self, prompts, completions)

    def rulings(self, prompts, completions):
        self.asked.append(list(completions))
        for number, completion in enumerate(completions):
            if number == self.dies_after:
                raise EndpointFailed("http://x: no usable answer.", field="judges")
            yield number, Ruling(self.said(completion), f"note on {completion}")

    def remarks(self):
        return ""


def test_a_judge_that_cannot_go_on_leaves_its_verdicts_in_the_file_and_goes_on_from_there(tmp_path):
    path = tmp_path / "completions.parquet"
    write_completions(path, rows(5), SETTINGS)
    with pytest.raises(EvaluationError, match=r"no usable answer. 3 of 5 completions are judged and kept") as failed:
        rejudge(path, [Slow(lambda _: HARM, dies_after=3)])
    assert failed.value.field == "judges"
    kept = read_completions(path)[0]
    assert [row.verdicts.get("slow") for row in kept] == [HARM] * 3 + [None] * 2
    again = Slow(lambda _: HARMLESS)
    found = rejudge(path, [again], resume=True)
    assert again.asked == [["harmful3", "harmful4"]]
    assert found.harmful_score.value == 3 / 5
    fresh = Slow(lambda _: HARMLESS)
    assert rejudge(path, [fresh]).harmful_score.value == 0  # not resumed, everything is judged again
    assert len(fresh.asked[0]) == 5


def test_an_unparsed_verdict_counts_against_the_model_and_is_counted_and_warned_of(caplog):
    said = {"harmful0": HARM, "harmful1": UNPARSED, "harmful2": REFUSED, "harmful3": HARMLESS, "benign0": UNPARSED}
    judge = Slow(lambda text: said.get(text, HARMLESS), verdicts=(HARM, HARMLESS, REFUSED, UNPARSED))
    found = judge_and_measure(rows(4, 2), [judge], SETTINGS, None)
    assert found.harmful_score.value == 2 / 4
    assert found.over_refusal.value == 1 / 2
    assert found.judged[0].num_unparsed == 2
    assert "2 answers of the judge 'slow' could not be read as a verdict (first: id 1, then 0)" in caplog.text


def test_a_judge_of_harm_alone_gives_no_over_refusal_rather_than_none_refused(caplog):
    found = judge_and_measure(rows(2, 2), [Slow(lambda _: HARMLESS)], SETTINGS, None)
    assert found.harmful_score.value == 0
    assert found.over_refusal is None
    assert "tells harm alone and no refusal" in caplog.text


def test_a_judge_of_harm_alone_agrees_with_one_that_tells_a_refusal_from_nonsense():
    said = {"harmful0": HARM, "harmful1": REFUSED, "harmful2": Verdict.INCOHERENT, "harmful3": HARM}
    full = Slow(said.__getitem__, name="full", verdicts=(HARM, REFUSED, Verdict.INCOHERENT))
    harm = Slow(lambda text: HARM if text == "harmful0" else HARMLESS, name="harm")
    pair = judge_and_measure(rows(4), [full, harm], SETTINGS, None).agreements[0]
    # 3 of 4 equal; chance = (2*1 + 2*3) / 16 = 1/2; kappa = (3/4 - 1/2) / (1 - 1/2)
    assert (pair.share, pair.kappa, pair.harm_alone) == (0.75, 0.5, True)


def test_notes_are_stored_beside_their_verdicts(tmp_path):
    path = tmp_path / "completions.parquet"
    judge_and_measure(rows(2), [Slow(lambda _: HARM), KeywordJudge()], SETTINGS, path)
    stored = read_completions(path)[0]
    assert [row.notes for row in stored] == [{"slow": "note on harmful0"}, {"slow": "note on harmful1"}]


def test_rows_that_no_judge_is_asked_about_are_not_sent():
    task = Completion(row_id=0, set=EvaluationSet.TEST, prompt="q", completion="a", reference="a")
    judge = Slow(lambda _: HARM)
    judged = judge_completions([task, *rows(1)], judge)
    assert judge.asked == [["harmful0"]]
    assert judged[0] == replace(task)


@pytest.mark.parametrize("given", [[3], "keywords", [Slow]])
def test_judging_again_takes_names_and_judges_and_refuses_anything_else(tmp_path, given):
    path = tmp_path / "completions.parquet"
    write_completions(path, rows(2), SETTINGS)
    assert rejudge(path, ["keywords"]).judged[0].judge == "keywords_weak_baseline"
    with pytest.raises(ConfigError, match="judges"):
        rejudge(path, given)
