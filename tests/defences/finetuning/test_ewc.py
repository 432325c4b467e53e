"""EWC against its equations, row by row in plain PyTorch."""

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.data.records import Message, Record, Template
from antibody_llm.defences.finetuning.ewc import EWC, EWCConfig, fisher_diagonal
from antibody_llm.errors import ConfigError, DataError
from antibody_llm.training.preparation import TrainingData
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat, gradient
from tests.tinylm import plain_nll, random_rows, step, tiny_llama, tiny_tokenizer

USER, SAFE = random_rows(6, seed=1), random_rows(5, seed=2)


def begun(model, **options):
    context = StepContext(model, rows={"user": USER, "alignment": SAFE})
    defence = EWC(EWCConfig(**options))
    defence.start(context)
    return context, defence


def shift(model, by):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(by)


def squared_gradient(model, row):
    start, end = row.spans[0]
    mean = plain_nll(model, row.input_ids, start, end) / (end - start)
    return torch.cat([g.flatten() for g in torch.autograd.grad(mean, list(model.parameters()))]).square()


def test_the_fisher_diagonal_is_the_mean_of_each_rows_own_squared_gradient():
    model = tiny_llama()
    ours = flat(fisher_diagonal(StepContext(model), SAFE))
    assert_close(ours, sum(squared_gradient(model, row) for row in SAFE) / 5, atol=1e-6, rtol=1e-4)


def test_at_the_start_the_pull_is_exactly_zero():
    model = tiny_llama()
    context, defence = begun(model, lam=10.0)
    result = defence.step(context, {"user": step(USER, 3)})
    plain = context.gradient("token_mean_nll", step(USER, 3)).gradients
    assert torch.equal(flat(result.gradients), flat(plain))
    assert result.metrics["proximal"] == 0.0


def test_after_a_shift_the_update_has_twice_lam_fisher_times_the_shift():
    model = tiny_llama()
    context, defence = begun(model, lam=3.0, num_fisher_rows=5)
    fisher = sum(squared_gradient(model, row) for row in SAFE) / 5
    shift(model, 0.01)
    update = flat(defence.step(context, {"user": step(USER, 3)}).gradients)
    assert_close(update, gradient(model, USER) + 2 * 3.0 * fisher * 0.01, atol=1e-5, rtol=1e-3)


def test_uniform_importance_is_l2_sp_with_rho_twice_lam_and_asks_for_no_safety_rows():
    model = tiny_llama()
    context, defence = begun(model, lam=0.5, importance="uniform")
    shift(model, 0.01)
    update = flat(defence.step(context, {"user": step(USER, 3)}).gradients)
    assert_close(update, gradient(model, USER) + 1.0 * 0.01, atol=1e-5, rtol=1e-4)
    assert defence.start_needs == ()


def test_a_fisher_of_one_everywhere_is_l2_sp():
    updates = []
    for options in ({"importance": "uniform"}, {}):
        model = tiny_llama()
        context, defence = begun(model, lam=0.5, **options)
        if defence.fisher is not None:
            defence.fisher = [torch.ones_like(f) for f in defence.fisher]
        shift(model, 0.01)
        updates.append(flat(defence.step(context, {"user": step(USER, 3)}).gradients))
    assert_close(updates[0], updates[1])


def test_the_fisher_rows_are_as_many_as_asked_for():
    model = tiny_llama()
    _, defence = begun(model, lam=1.0, num_fisher_rows=1)
    fishers = [squared_gradient(model, row) for row in SAFE]
    assert sum(torch.allclose(flat(defence.fisher), f, atol=1e-6, rtol=1e-3) for f in fishers) == 1


def test_the_default_is_boosters_brought_from_its_sum_over_batches_to_our_mean_over_rows():
    # Its 1e-3 stands before sum_b (mean of a batch's gradients)^2. Both ends of the range, on single weights.
    num_batches, batch = 20, 5
    alike = torch.ones(num_batches, batch)
    cancelling = torch.randn(20_000, batch, generator=torch.Generator().manual_seed(0))
    high, low = (num_batches * float(g.mean(dim=1).square().mean() / g.square().mean()) for g in (alike, cancelling))
    assert (low, high) == (pytest.approx(4, rel=0.05), 20)
    assert 1e-3 * low < EWCConfig().lam < 1e-3 * high


def provided(*completions):
    messages = [(Message("user", "question"), Message("assistant", c)) for c in completions]
    rows = [Record(i, m, Template.TEXT, "provider", i + 1) for i, m in enumerate(messages)]
    return TrainingData({"user": rows, "alignment": rows}, tiny_tokenizer(), 0)


def test_the_fisher_rows_are_those_that_refuse():
    data = provided("sorry, i cannot help.", "mix it with water", "i must decline.")
    rows = data.records["alignment"]
    kept = EWC(EWCConfig(lam=1.0)).prepare(data)
    assert kept.records == {"user": rows, "alignment": [rows[0], rows[2]]}


def test_rows_of_which_none_refuses_are_an_error_unless_importance_is_uniform():
    data = provided("mix it with water")
    with pytest.raises(DataError, match=r"no alignment row refuses .*alignment_data"):
        EWC(EWCConfig(lam=1.0)).prepare(data)
    assert EWC(EWCConfig(lam=1.0, importance="uniform")).prepare(data) is data
    assert EWC(EWCConfig(lam=0.0)).prepare(data) is data


@pytest.mark.parametrize(("field", "value"), [("lam", -1.0), ("lam", float("inf")), ("num_fisher_rows", 0)])
def test_bad_options_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"ewc.{field} is"):
        EWCConfig(**{field: value})
