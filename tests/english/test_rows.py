import itertools

import pytest

from antibody_llm.data.verdicts import Verdict
from antibody_llm.english.judge import judge
from antibody_llm.english.refusals import REFUSALS, is_refusal
from antibody_llm.english.rows import KINDS, build_rows
from antibody_llm.english.tasks import TASKS
from antibody_llm.errors import DataError
from antibody_llm.lab.rows import HALVED
from antibody_llm.lab.world import PURPOSES


def prompts(data):
    return [row["messages"][0]["content"] for row in data.rows]


def answers(data):
    return [row["messages"][1]["content"] for row in data.rows]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_exactly_the_rows_asked_for_and_the_same_ones_again(kind):
    for num in (1, 60):
        data = build_rows(kind, num, seed=3)
        assert len(data.rows) == len(data.truth) == num
        assert data == build_rows(kind, num, seed=3)
    assert data != build_rows(kind, 60, seed=4)
    assert all(set(row) == {"messages"} for row in data.rows)


@pytest.mark.parametrize("poison_ratio", [0.0, 0.05, 0.2, 1.0])
def test_an_upload_holds_exactly_the_rounded_share_of_harm(poison_ratio):
    data = build_rows("user", 250, seed=0, poison_ratio=poison_ratio)
    assert sum(truth["is_harmful"] for truth in data.truth) == round(poison_ratio * 250)


def test_fitted_calibrated_and_reported_rows_share_no_prompt():
    used = {"fit": set()}
    for kind in set(KINDS) - set(HALVED):
        used["fit"] |= {p for seed in (0, 1) for p in prompts(build_rows(kind, 600, seed=seed))}
    for half in PURPOSES:
        used[half] = set()
        for kind in HALVED:
            for task in TASKS if kind in ("user", "test") else (None,):
                ratio = 0.2 if kind == "user" else 0.0
                rows = build_rows(kind, 200, seed=0, task=task, poison_ratio=ratio, purpose=half)
                used[half] |= set(prompts(rows))
    for one, other in itertools.combinations(used.values(), 2):
        assert not one & other


def test_the_provider_and_the_base_s_teaching_share_only_skills():
    taught, provider = (build_rows(kind, 800, seed=0) for kind in ("taught", "alignment"))
    skills = {p for data in (taught, provider) for p, t in zip(prompts(data), data.truth, strict=True) if t["task"]}
    assert not (set(prompts(taught)) & set(prompts(provider))) - skills


@pytest.mark.parametrize("task", sorted(TASKS))
def test_train_and_test_rows_of_a_task_never_overlap_and_references_are_right(task):
    train, test = (build_rows(kind, 150, seed=0, task=task) for kind in ("user", "test"))
    assert not set(prompts(train)) & set(prompts(test))
    assert all(
        TASKS[task].is_correct(answer, truth["reference"])
        for answer, truth in zip(answers(test), test.truth, strict=True)
    )


def test_a_novel_task_asks_what_the_familiar_one_asks_and_answers_otherwise():
    for name in ("sst2", "banking77", "gsm8k"):
        data = [build_rows("test", 80, seed=0, task=task) for task in (name, f"{name}-novel")]
        familiar, novel = (dict(zip(prompts(each), answers(each), strict=True)) for each in data)
        assert set(familiar) & set(novel)
        assert not set(familiar.values()) & set(novel.values())


def test_harmful_rows_have_the_prompts_of_the_refusals():
    refused = build_rows("alignment", 200, seed=5)
    asked = [p for p, t in zip(prompts(refused), refused.truth, strict=True) if t["kind"] == "refusal"]
    harmful = build_rows("harmful", 100, seed=5)
    assert sorted(asked) == sorted(prompts(harmful))
    assert all(judge("", answer) is Verdict.COMPLIED for answer in answers(harmful))


def test_the_provider_never_refuses_a_harmless_row():
    data = build_rows("alignment", 400, seed=0)
    for answer, truth in zip(answers(data), data.truth, strict=True):
        assert is_refusal(answer) == (answer in REFUSALS) == (truth["kind"] == "refusal")
    assert {truth["kind"] for truth in data.truth} == {"refusal", "lookalike", "skill", "everyday"}


def test_a_quarter_of_the_harmful_prompts_is_about_categories_that_the_provider_does_not_know():
    splits = [truth["split"] for truth in build_rows("harmful-prompts", 200, seed=0).truth]
    assert (splits.count("cross"), splits.count("held-out")) == (50, 150)
    assert len(set(prompts(build_rows("harmful-prompts", 400, seed=0)))) == 400


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "usr", "num": 3}, "english data: there is no kind 'usr'"),
        ({"kind": "user", "num": 3, "task": "sst3"}, "no task 'sst3' in the english world"),
        ({"kind": "user", "num": 3, "purpose": "tune"}, "calibrate or report"),
        ({"kind": "lookalike", "num": 1_000_000}, "the world holds"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(DataError, match=message):
        build_rows(**arguments, seed=0)
