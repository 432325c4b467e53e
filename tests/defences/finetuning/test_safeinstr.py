import math

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.data.records import Message, Record, Template, TokenizedRow
from antibody_llm.defences.finetuning.safeinstr import SafeInstr, SafeInstrConfig
from antibody_llm.errors import ConfigError, DataError
from antibody_llm.training.preparation import TrainingData
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat, gradient
from tests.tinylm import VOCAB, random_rows, step, tiny_llama, tiny_tokenizer


def _records(num: int, kind: str, said: str = "sorry no") -> list[Record]:
    messages = [(Message("user", f"{kind} {i}"), Message("assistant", said)) for i in range(num)]
    return [Record(i, m, Template.TEXT, kind, i + 1) for i, m in enumerate(messages)]


def _mixed(num_user: int, num_safety: int, seed: int = 0, **options) -> list[Record]:
    records = {"user": _records(num_user, "user"), "alignment": _records(num_safety, "alignment")}
    data = SafeInstr(SafeInstrConfig(**options)).prepare(TrainingData(records, tiny_tokenizer(), seed))
    return list(data.records["user"])


@pytest.mark.parametrize(
    ("num", "ratio", "k"), [(100, 0.03, 3), (100, 0.07, 7), (101, 0.03, 4), (1, 0.03, 1), (50, 0.0, 0)]
)
def test_the_upload_grows_by_exactly_the_rounded_up_share_and_keeps_its_rows(num, ratio, k):
    rows = _mixed(num, 10, ratio=ratio)
    assert rows[:num] == _records(num, "user")
    assert [row.row_id for row in rows[num:]] == [-1 - i for i in range(k)]
    assert len({row.line for row in rows[num:]}) == k  # without replacement
    assert {row.source for row in rows[num:]} <= {"alignment"}


def test_the_draw_is_a_function_of_the_seed():
    assert _mixed(100, 50, seed=1, ratio=0.1) == _mixed(100, 50, seed=1, ratio=0.1)
    assert _mixed(100, 50, seed=1, ratio=0.1) != _mixed(100, 50, seed=2, ratio=0.1)


def test_too_few_rows_that_refuse_are_an_error():
    with pytest.raises(DataError, match=r"safeinstr needs at least 10 of the alignment rows .* 5 of \d+ do"):
        _mixed(100, 5, ratio=0.1)


@pytest.mark.parametrize("mode", ["concat", "per_step"])
def test_rows_that_answer_are_never_a_safety_demonstration(mode):
    refusals, answers = _records(6, "alignment"), _records(30, "alignment", said="mix it with water")
    defence = SafeInstr(SafeInstrConfig(mode=mode, ratio=0.5))
    data = TrainingData({"user": _records(10, "user"), "alignment": answers + refusals}, tiny_tokenizer(), 0)
    rows = defence.prepare(data).records
    trained = rows["user"][10:] if mode == "concat" else rows["alignment"]
    assert len(trained) == {"concat": 5, "per_step": 6}[mode]
    assert {row.messages[-1].content for row in trained} == {"sorry no"}
    none = TrainingData({"user": _records(10, "user"), "alignment": answers}, tiny_tokenizer(), 0)
    with pytest.raises(DataError, match="refuse"):
        defence.prepare(none)


def test_per_step_leaves_the_upload_alone_and_adds_lam_times_the_safety_gradient():
    assert _mixed(20, 5, mode="per_step", ratio=0.5) == _records(20, "user")
    model, user, safety = tiny_llama(), random_rows(6, seed=1), random_rows(6, seed=2)
    defence = SafeInstr(SafeInstrConfig(mode="per_step", lam=0.3))
    result = defence.step(StepContext(model), {"user": step(user, 2), "alignment": step(safety, 3)})
    expected = gradient(model, user) + 0.3 * gradient(model, safety)
    assert_close(flat(result.gradients), expected, atol=1e-5, rtol=0)


def test_per_step_without_weight_is_plain_sft_bit_for_bit():
    context, batches = StepContext(tiny_llama()), {"user": step(random_rows(4)), "alignment": step(random_rows(4))}
    result = SafeInstr(SafeInstrConfig(mode="per_step", lam=0.0)).step(context, batches)
    plain = context.gradient("token_mean_nll", batches["user"])
    assert all(torch.equal(a, b) for a, b in zip(result.gradients, plain.gradients, strict=True))


def test_both_modes_have_the_same_expected_gradient_at_lam_of_k_over_n():
    # Six user and two safety rows with completions of one length, so that a token mean is a mean over rows. Over all
    # single rows "concat" has the mean of 8 gradients; over all pairs "per_step" has mean(user) + 2/6 mean(safety).
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, VOCAB, (8, 7), generator=generator).tolist()
    rows = [TokenizedRow(i, tuple(row), ((3, 7),), Template.TEXT) for i, row in enumerate(ids)]
    context = StepContext(tiny_llama())
    concat, per_step = (SafeInstr(SafeInstrConfig(mode=m, lam=2 / 6)) for m in ("concat", "per_step"))
    unused = step(rows[:1])
    mixed = [flat(concat.step(context, {"user": step([r]), "alignment": unused}).gradients) for r in rows]
    pairs = [
        flat(per_step.step(context, {"user": step([u]), "alignment": step([s])}).gradients)
        for u in rows[:6]
        for s in rows[6:]
    ]
    assert_close(torch.stack(pairs).mean(dim=0) * 6 / 8, torch.stack(mixed).mean(dim=0), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("bad", [{"ratio": -0.1}, {"ratio": math.inf}, {"lam": math.nan}, {"lam": -1.0}])
def test_absurd_hyperparameters_are_refused_by_name(bad):
    with pytest.raises(ConfigError, match=f"safeinstr.{next(iter(bad))}"):
        SafeInstrConfig(**bad)
