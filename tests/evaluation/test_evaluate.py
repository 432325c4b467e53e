from dataclasses import replace

import pytest

from antibody_llm.data.encode import RowError
from antibody_llm.data.problems import BadRow
from antibody_llm.data.records import Message, Record, Template
from antibody_llm.data.verdicts import Verdict
from antibody_llm.errors import ConfigError, DataError, EvaluationError
from antibody_llm.evaluation.completions import read_completions
from antibody_llm.evaluation.decoding import DecodingSettings
from antibody_llm.evaluation.evaluate import Evaluation, evaluate_model, prompt_text, rejudge
from antibody_llm.evaluation.generation import generate
from antibody_llm.evaluation.judges.keywords import KeywordJudge
from antibody_llm.models.deployment import Deployment

DECODING = DecodingSettings(max_new_tokens=4, batch_size=3)
SHORT = DecodingSettings(max_new_tokens=2, batch_size=3)


class WordRenderer:
    """Prompt words are tokens w0, w1, ... of the tiny tokenizer."""

    stop_ids = ()

    def encode_prompt(self, record):
        return [int(word.removeprefix("w")) + 3 for word in prompt_text(record).split()]

    def reference_text(self, record):
        return record.messages[-1].content if record.messages[-1].role == "assistant" else None


class PromptJudge:
    """Says what the prompt's first word is mapped to; None for words it does not know."""

    verdicts = frozenset(Verdict)

    def __init__(self, name, table):
        self.name = name
        self.table = table

    def judge(self, prompts, completions):
        return [self.table.get(prompt.split()[0]) for prompt in prompts]


def record(row_id, prompt, answer=None):
    messages = [Message("user", prompt)] + ([Message("assistant", answer)] if answer is not None else [])
    return Record(row_id, tuple(messages), Template.CHAT, "rows.jsonl", row_id + 1)


HARMFUL = [record(10, "w1 w2"), record(11, "w2"), record(12, "w3 w4 w5"), record(13, "w1")]
BENIGN = [record(0, "w2 w9"), record(1, "w1 w7")]
C, R, NEITHER = Verdict.COMPLIED, Verdict.REFUSED, Verdict.INCOHERENT
LAB = PromptJudge("lab", {"w1": C, "w2": R, "w3": NEITHER})
OTHER = PromptJudge("other", {"w1": C, "w2": C, "w3": NEITHER})


@pytest.fixture
def run(tiny_lm, tiny_tokenizer):
    def run(**given):
        given = {"judges": [LAB], "decoding": DECODING, "renderer": WordRenderer()} | given
        return evaluate_model(tiny_lm, tiny_tokenizer, **given)

    return run


@pytest.fixture
def tasks(tiny_lm, tiny_tokenizer):
    """Two rows of which the model answers the first as the reference does, at two new tokens."""
    said = generate(tiny_lm, tiny_tokenizer, [[8, 9]], max_new_tokens=2, batch_size=1)[0]
    return [record(0, "w5 w6", said), record(1, "w7", "something else")]


def test_every_measure_is_the_one_counted_by_hand(run, tasks):
    found = run(harmful=HARMFUL, benign=BENIGN, test=tasks, retention=tasks[:1], task_decoding=SHORT)
    assert found.harmful_score.value == 0.5  # w1 of w1 w2 w3 w1
    assert found.incoherent.value == 0.25
    assert found.judged[0].harmful_or_incoherent.value == 0.75
    assert found.over_refusal.value == 0.5
    assert found.judged[0].benign_incoherent.value == 0.0
    assert (found.finetune_accuracy.value, found.finetune_accuracy.n) == (0.5, 2)
    assert (found.retention.value, found.retention.n) == (1.0, 1)
    assert found.harmful_score.decoding == DECODING
    assert found.finetune_accuracy.decoding == SHORT


def test_completions_carry_id_prompt_text_and_verdict_of_their_own_row(run, tiny_lm, tiny_tokenizer):
    rows = run(harmful=HARMFUL).completions
    assert [(row.row_id, row.prompt, row.verdicts["lab"]) for row in rows] == [
        (10, "w1 w2", C),
        (11, "w2", R),
        (12, "w3 w4 w5", NEITHER),
        (13, "w1", C),
    ]
    prompts = [WordRenderer().encode_prompt(row) for row in HARMFUL]
    assert [row.completion for row in rows] == generate(
        tiny_lm, tiny_tokenizer, prompts, max_new_tokens=4, batch_size=1
    )


def test_completions_end_where_the_renderer_says_a_turn_ends(run, tiny_tokenizer):
    free = run(harmful=HARMFUL).completions[0].completion.split()
    renderer = WordRenderer()
    renderer.stop_ids = (tiny_tokenizer.convert_tokens_to_ids(free[1]),)
    ended = run(harmful=HARMFUL, renderer=renderer).completions[0].completion.split()
    assert ended == free[: free.index(free[1])]


def test_a_model_is_prompted_and_read_as_its_defence_wants_it_deployed(run, tiny_lm, tiny_tokenizer):
    class SystemRenderer(WordRenderer):
        def encode_prompt(self, record):
            words = " ".join(message.content for message in record.messages)
            return [int(word.removeprefix("w")) + 3 for word in words.split()]

    said = generate(tiny_lm, tiny_tokenizer, [[4, 12, 4, 5]], max_new_tokens=4, batch_size=1)[0]
    first, rest = said.split(maxsplit=1)
    deployment = Deployment(system_prefix="w1 w9", completion_prefix=first)
    row = run(harmful=[record(0, "w1 w2")], renderer=SystemRenderer(), deployment=deployment).completions[0]
    assert (row.prompt, row.completion) == ("w1 w2", rest)


def test_a_set_that_is_not_given_has_no_figure(run, tasks):
    found = run(test=tasks, judges=[])
    assert found.harmful_score is None
    assert found.over_refusal is None
    assert found.retention is None
    assert found.finetune_accuracy is not None


def test_two_judges_give_their_agreement_and_the_first_gives_the_figures(run):
    found = run(harmful=HARMFUL, benign=BENIGN, judges=[LAB, OTHER])
    assert [one.judge for one in found.judged] == ["lab", "other"]
    assert found.harmful_score.judge == "lab"
    assert found.judged[1].harmful_score.value == 0.75
    # Equal but for w2, which is 1 of 4 harmful and 1 of 2 benign.
    assert (found.agreements[0].share, found.agreements[0].n) == (4 / 6, 6)


def test_what_a_judge_cannot_tell_is_not_reported_as_zero(run):
    found = run(harmful=HARMFUL, benign=BENIGN, judges=[KeywordJudge()])
    assert found.judged[0].harmful_score.value == 1.0  # no refusal phrase in w1, w2, ...
    assert found.incoherent is None
    assert found.judged[0].harmful_or_incoherent is None
    assert found.judged[0].benign_incoherent is None


def test_evaluation_survives_json_without_its_completions(run):
    found = run(harmful=HARMFUL, judges=[LAB, OTHER])
    read = Evaluation.model_validate_json(found.model_dump_json())
    assert read == found.model_copy(update={"completions": ()})
    assert "completions" not in found.model_dump_json()


def test_judging_again_needs_no_model_and_keeps_the_other_judges_verdicts(run, tmp_path, tasks):
    path = tmp_path / "completions.parquet"
    first = run(harmful=HARMFUL, benign=BENIGN, test=tasks, task_decoding=SHORT, completions_path=path)
    second = rejudge(path, [OTHER])
    assert second.judged[0].harmful_score.value == 0.75
    assert second.finetune_accuracy == first.finetune_accuracy
    assert rejudge(path, [LAB]).judged == first.judged
    rows, _ = read_completions(path)
    assert rows[1].verdicts == {"lab": R, "other": C}
    assert rows[-1].verdicts == {"lab": None, "other": None}  # a test row


def test_a_missing_verdict_raises_and_names_the_row_but_completions_are_stored(run, tmp_path):
    path = tmp_path / "completions.parquet"
    silent = PromptJudge("silent", {"w1": C, "w2": R})
    with pytest.raises(EvaluationError, match=r"'silent' gave no verdict on 1 of 4 completions \(first: id 12\)"):
        run(harmful=HARMFUL, judges=[silent], completions_path=path)
    assert rejudge(path, [LAB]).harmful_score.value == 0.5


@pytest.mark.parametrize(("before", "stored"), [([], [{}] * 4), ([LAB], [{"lab": v} for v in (C, R, NEITHER, C)])])
def test_completions_and_earlier_verdicts_outlive_a_judge_that_crashes(run, tmp_path, before, stored):
    class Crashing(PromptJudge):
        def judge(self, prompts, completions):
            raise RuntimeError("gone")

    path = tmp_path / "completions.parquet"
    with pytest.raises(RuntimeError, match="gone"):
        run(harmful=HARMFUL, judges=[*before, Crashing("crashing", {})], completions_path=path)
    rows, settings = read_completions(path)
    assert [row.verdicts for row in rows] == stored
    assert settings.decoding == DECODING


def test_a_judge_with_too_few_verdicts_is_refused(run):
    class Short(PromptJudge):
        def judge(self, prompts, completions):
            return [C]

    with pytest.raises(EvaluationError, match="'short' gave 1 verdict on 4 completions"):
        run(harmful=HARMFUL, judges=[Short("short", {})])


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({}, EvaluationError, "nothing to evaluate on"),
        ({"harmful": []}, EvaluationError, "the harmful rows are an empty list"),
        ({"harmful": HARMFUL, "retention": []}, EvaluationError, "the retention rows are an empty list"),
        ({"harmful": HARMFUL, "judges": []}, ConfigError, "need a judge"),
        ({"harmful": HARMFUL, "judges": [LAB, LAB]}, ConfigError, "'lab' is given twice"),
        ({"test": [record(4, "w1")]}, EvaluationError, "rows.jsonl, line 5: the row has no reference answer"),
        ({"test": [record(4, "w1", "x")], "answer": "gsm8k"}, EvaluationError, "line 5: .* has no number"),
        ({"test": [record(4, "w1", "x")], "answer": "gsm"}, ConfigError, "did you mean 'gsm8k'"),
        ({"harmful": [record(4, "")]}, EvaluationError, "line 5: the row has no user message"),
    ],
)
def test_what_is_bound_to_fail_fails_before_anything_is_generated(run, monkeypatch, given, error, match):
    monkeypatch.setattr("antibody_llm.evaluation.evaluate.generate", lambda *a, **k: pytest.fail("generated"))
    with pytest.raises(error, match=match):
        run(**given)


def test_a_row_that_does_not_fit_the_context_is_named_by_file_and_line(run):
    with pytest.raises(EvaluationError, match=r"1 of 5 prompts .* \(first: rows.jsonl, line 8, of 100 tokens\)"):
        run(harmful=[*HARMFUL, record(7, "w1 " * 100)])


def test_the_prompt_of_a_conversation_is_its_last_user_message():
    messages = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
    assert prompt_text(Record(0, messages, Template.CHAT, "x", 1)) == "c"


def test_all_rows_that_the_template_refuses_are_named_together(run):
    class Refusing(WordRenderer):
        def encode_prompt(self, record):
            if record.row_id:
                raise RowError(record, BadRow("refused by the template", "not this one."))
            return super().encode_prompt(record)

    rows = [replace(record(i, "w1 w2"), line=i + 1) for i in range(3)]
    with pytest.raises(DataError, match=r"line 2: not this one. \(1 more like it: line 3\)"):
        run(harmful=rows, renderer=Refusing())
