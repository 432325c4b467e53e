import math
from collections import Counter

import pytest
import torch

from antibody_llm.data.records import Message, Record, Template
from antibody_llm.defences.finetuning.behaviour_aware_sampling import (
    BehaviourAwareSampling,
    BehaviourAwareSamplingConfig,
    behaviour_aware_sample,
)
from antibody_llm.errors import ConfigError, DataError
from antibody_llm.primitives.spread import hashed_words
from antibody_llm.training.preparation import TrainingData
from tests.tinylm import tiny_tokenizer

KINDS = ("poison", "fraud", "theft", "spying")


def _rows(source: str, pairs: list[tuple[str, str]]) -> list[Record]:
    return [
        Record(i, (Message("user", asked), Message("assistant", said)), Template.CHAT, source, i + 1)
        for i, (asked, said) in enumerate(pairs)
    ]


USER = _rows("user", [("hello", "hi")] * 100)
# 10 invented questions of each kind, all refused, and as many harmless answers.
POOL = _rows(
    "provider",
    [(f"{kind} {kind} {kind} question {i}", "sorry, i cannot") for kind in KINDS for i in range(10)]
    + [(f"{kind} {kind} {kind} question {i}", "mix it with water") for kind in KINDS for i in range(10)],
)


def _chosen(pool: list[Record] = POOL, seed: int = 0, **options) -> list[Record]:
    data = TrainingData({"user": USER, "alignment": pool}, tiny_tokenizer(), seed)
    rows = list(BehaviourAwareSampling(BehaviourAwareSamplingConfig(**options)).prepare(data).records["user"])
    assert rows[:100] == USER
    return rows[100:]


@pytest.mark.parametrize("num", [4, 6, 11, 40])
def test_categories_differ_by_one_at_most_and_no_row_is_taken_twice(num):
    vectors = torch.nn.functional.normalize(torch.randn(80, 5, generator=torch.Generator().manual_seed(1)), dim=1)
    categories = [i % 4 for i in range(80)]
    chosen = behaviour_aware_sample(vectors, categories, num, seed="a")
    counts = [Counter(categories[i] for i in chosen)[c] for c in range(4)]
    assert len(set(chosen)) == len(chosen) == num
    assert max(counts) - min(counts) <= 1
    assert chosen == behaviour_aware_sample(vectors, categories, num, seed="a")


def test_within_a_category_the_sample_covers_more_than_a_random_one():
    vectors = torch.nn.functional.normalize(torch.randn(60, 3, generator=torch.Generator().manual_seed(2)), dim=1)

    def radius(chosen: list[int]) -> float:
        return float(torch.cdist(vectors, vectors[chosen]).min(dim=1).values.max())

    ours = [radius(behaviour_aware_sample(vectors, [0] * 60, 6, seed=str(s))) for s in range(20)]
    by_chance = [radius(torch.randperm(60, generator=torch.Generator().manual_seed(s))[:6].tolist()) for s in range(20)]
    assert sum(ours) < sum(by_chance)
    assert max(ours) < sum(by_chance) / 20


def test_only_refusals_are_taken_and_every_kind_of_harm_is_among_them():
    rows = _chosen(ratio=0.08, num_categories=4)
    assert [row.row_id for row in rows] == [-1 - i for i in range(8)]
    assert {row.messages[-1].content for row in rows} == {"sorry, i cannot"}
    assert Counter(row.messages[0].content.split()[0] for row in rows) == dict.fromkeys(KINDS, 2)


def test_the_sample_is_a_function_of_the_seed():
    assert _chosen(ratio=0.05, seed=1) == _chosen(ratio=0.05, seed=1)
    assert len({str(_chosen(ratio=0.05, seed=s)) for s in range(5)}) > 1


@pytest.mark.parametrize("ratio", [0.004, 0.005, 0.01])
def test_a_small_upload_gets_one_row_and_only_ratio_0_adds_none(ratio):
    assert len(_chosen(ratio=ratio)) == 1
    assert _chosen(ratio=0.0) == []


def test_a_pool_without_enough_refusals_is_an_error():
    with pytest.raises(DataError, match=r"at least 50 of the alignment rows to refuse .* 3 of \d+ do\..*lower .*ratio"):
        _chosen(pool=POOL[:3] + POOL[40:], ratio=0.5)


def test_hashed_words_bring_texts_together_that_share_words():
    a, b, c = hashed_words(["how to brew glimdust", "how to brew torvdust", "sum of seven and two"])
    assert a @ b > 0.3 > abs(a @ c)
    assert a.norm().item() == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [{"ratio": -0.1}, {"ratio": math.nan}, {"num_categories": 0}])
def test_absurd_hyperparameters_are_refused_by_name(bad):
    with pytest.raises(ConfigError, match=f"behaviour-aware-sampling.{next(iter(bad))}"):
        BehaviourAwareSamplingConfig(**bad)
