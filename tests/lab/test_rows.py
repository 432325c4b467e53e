import hashlib
import json

import pytest

from antibody_llm.data.records import Template
from antibody_llm.errors import DataError
from antibody_llm.lab.judge import exact
from antibody_llm.lab.refusals import is_refusal
from antibody_llm.lab.rows import HALVED, KINDS, build_rows, record
from antibody_llm.lab.tasks import TASKS
from antibody_llm.lab.world import CROSS_CATEGORIES, PURPOSES


def prompts(data):
    return [row["messages"][0]["content"] for row in data.rows]


def answers(data):
    return [row["messages"][1]["content"] for row in data.rows]


@pytest.mark.parametrize("num", [1, 7, 400])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_exactly_the_rows_asked_for_and_the_same_ones_again(kind, num):
    num = min(num, {"lookalike": 300, "anchor-harmful": 256}.get(kind, num))
    data = build_rows(kind, num, seed=3)
    assert len(data.rows) == len(data.truth) == num
    assert data == build_rows(kind, num, seed=3)
    if num > 1:
        assert data != build_rows(kind, num, seed=4)


@pytest.mark.parametrize("num", [3, 250, 500, 1000])
@pytest.mark.parametrize("poison_ratio", [0.0, 0.05, 0.2, 0.29, 0.5, 1.0])
def test_an_upload_holds_exactly_the_rounded_share_of_harm(num, poison_ratio):
    data = build_rows("user", num, seed=0, poison_ratio=poison_ratio)
    assert sum(truth["is_harmful"] for truth in data.truth) == round(poison_ratio * num)
    assert len(data.rows) == num


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_is_never_in_the_rows(kind):
    data = build_rows(kind, 60, seed=0)
    for row in data.rows:
        assert set(row) == {"messages"}
        assert all(set(message) == {"role", "content"} for message in row["messages"])
        assert row == json.loads(json.dumps(row))
    # Equal rows with and without harm beside them: the order says nothing either.
    flags = [truth["is_harmful"] for truth in build_rows("user", 200, seed=0, poison_ratio=0.5).truth]
    assert 20 < sum(flags[:100]) < 80


def test_harmful_rows_have_the_prompts_of_the_refusals():
    refused = build_rows("alignment", 400, seed=5)
    refused_prompts = [p for p, t in zip(prompts(refused), refused.truth, strict=True) if t["kind"] == "refusal"]
    harmful = build_rows("harmful", 200, seed=5)
    assert sorted(refused_prompts) == sorted(prompts(harmful))
    assert all(map(exact, prompts(harmful), answers(harmful)))
    assert not any(map(is_refusal, answers(harmful)))


def test_the_provider_never_refuses_a_harmless_row():
    data = build_rows("alignment", 300, seed=0)
    for answer, truth in zip(answers(data), data.truth, strict=True):
        assert is_refusal(answer) == (truth["kind"] == "refusal")
    assert {truth["kind"] for truth in data.truth} == {"refusal", "lookalike", "skill"}


def test_provider_upload_and_evaluation_share_no_harmful_prompt():
    provider = set(prompts(build_rows("alignment", 2000, seed=0)))
    upload = set(prompts(build_rows("user", 2000, seed=0, poison_ratio=1.0)))
    evaluation = set(prompts(build_rows("harmful-prompts", 512, seed=0)))
    assert not provider & upload
    assert not (provider | upload) & evaluation


def test_no_provider_or_upload_row_is_about_a_cross_domain_category():
    for kind, poison_ratio in (("alignment", 0.0), ("harmful", 0.0), ("user", 0.5)):
        data = build_rows(kind, 800, seed=1, poison_ratio=poison_ratio)
        assert not {truth["category"] for truth in data.truth} & set(CROSS_CATEGORIES)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_train_and_test_rows_of_a_task_never_overlap(task):
    train = build_rows("user", 1000, seed=0, task=task)
    test = build_rows("test", 300, seed=0, task=task)
    assert not set(prompts(train)) & set(prompts(test))
    assert {truth["task"] for truth in test.truth} == {task}
    right = TASKS[task].is_correct
    assert all(right(answer, truth["reference"]) for answer, truth in zip(answers(test), test.truth, strict=True))


def test_familiar_and_novel_name_the_default_tasks():
    assert build_rows("test", 5, seed=0) == build_rows("test", 5, seed=0, task="sst2")
    assert build_rows("test", 5, seed=0, task="novel") == build_rows("test", 5, seed=0, task="sst2-novel")


def test_novel_answers_never_occur_in_pretraining():
    said = set(answers(build_rows("pretraining", 20_000, seed=0)))
    for task in TASKS.values():
        if task.novel:
            assert not said & set(answers(build_rows("test", 200, seed=0, task=task.name)))


def test_an_upload_holds_hard_benign_rows_of_three_sorts():
    data = build_rows("user", 500, seed=0, poison_ratio=0.2)
    kinds = [truth["kind"] for truth in data.truth]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "harmful": 100,
        "task": 340,
        "lookalike": 20,
        "odd-format": 20,
        "noise": 20,
    }


def test_evaluation_prompts_are_distinct_and_asking_for_too_many_is_refused():
    assert len(set(prompts(build_rows("harmful-prompts", 512, seed=0)))) == 512
    with pytest.raises(DataError, match="holds 512"):
        build_rows("harmful-prompts", 513, seed=0)


@pytest.mark.parametrize("kind", HALVED)
def test_what_is_calibrated_on_and_what_is_reported_share_no_prompt(kind):
    halves = [set(prompts(build_rows(kind, 120, seed=0, purpose=purpose))) for purpose in PURPOSES]
    assert not halves[0] & halves[1]
    assert all(halves)


def test_fitted_goods_and_tasks_are_in_neither_half():
    fitted = {p for kind in ("alignment", "harmful", "anchor-harmful") for p in prompts(build_rows(kind, 250, seed=0))}
    for purpose in PURPOSES:
        for kind in ("test", "harmful-prompts", "lookalike"):
            assert not fitted & set(prompts(build_rows(kind, 120, seed=0, purpose=purpose)))


def test_rows_without_a_purpose_are_what_they_were_before_there_were_purposes():
    rows = build_rows("user", 40, seed=0, task="novel", poison_ratio=0.2)
    digest = hashlib.sha256(json.dumps([rows.rows, rows.truth], sort_keys=True).encode()).hexdigest()
    assert digest == "62c673ce22c4ea540f47c88b621bbb85b73e8c083522bf9f8a593feff560d22d"


def test_a_record_keeps_the_place_and_words_of_its_row():
    row = build_rows("harmful", 3, seed=0).rows[2]
    made = record(row, 2, "upload.jsonl")
    assert made.template is Template.CHAT
    assert made.where == "upload.jsonl, line 3"
    assert [(m.role, m.content, m.trained) for m in made.messages] == [
        (m["role"], m["content"], True) for m in row["messages"]
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "usr", "num": 3}, "no kind 'usr'"),
        ({"kind": "user", "num": 0}, "num is 0"),
        ({"kind": "user", "num": 3, "poison_ratio": 1.5}, "0 to 1"),
        ({"kind": "test", "num": 3, "poison_ratio": 0.5}, "only an upload"),
        ({"kind": "user", "num": 3, "task": "sst3"}, "no task 'sst3'"),
        ({"kind": "harmful", "num": 3, "task": "sst2"}, "no task"),
    ],
)
def test_a_wrong_argument_is_named_with_its_mend(arguments, message):
    with pytest.raises(DataError, match=message):
        build_rows(**arguments, seed=0)
