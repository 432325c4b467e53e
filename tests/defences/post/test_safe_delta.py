"""Safe Delta against its equations: selection by hand, compensation against least squares, a layer in plain PyTorch."""

import copy

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.defences.post.safe_delta import (
    SafeDelta,
    SafeDeltaConfig,
    compensated,
    inverse_factor,
    kept_entries,
)
from antibody_llm.errors import ConfigError, DataError
from antibody_llm.likelihood.reader import ModelReader
from antibody_llm.training.preparation import TrainingData
from tests.defences.plain import shifted
from tests.tinylm import random_rows, tiny_llama
from tests.training.helpers import as_record

SAFE = random_rows(9, seed=2)


def moment(size=5, seed=0, num=40):
    x = torch.randn(num, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x.T @ x / num).float()


def damped(h, damping):
    return h + damping * h.diagonal().mean() * torch.eye(len(h))


def test_the_factor_is_upper_triangular_and_its_square_the_damped_inverse():
    h = moment()
    u = inverse_factor(h, 0.1)
    assert torch.equal(u, u.triu())
    assert_close(u.T @ u @ damped(h, 0.1), torch.eye(5), atol=1e-5, rtol=1e-5)


def test_the_cheapest_entries_are_kept_until_the_budget_is_spent():
    factor = torch.diag(torch.tensor([1.0, 0.5]))
    delta = torch.tensor([[1.0, 1.0], [3.0, 0.5]])  # costs 1, 4, 9, 1: 15 in all
    assert kept_entries(delta, factor, 2 / 15, 0.0).tolist() == [[True, False], [False, True]]
    assert kept_entries(delta, factor, 6 / 15, 0.0).tolist() == [[True, True], [False, True]]
    assert kept_entries(delta, factor, 6 / 15, 0.5).tolist() == [[True, False], [False, False]]  # of column 1 none
    assert kept_entries(delta, factor, 0.0, 0.0).sum() == 0
    assert kept_entries(delta, factor, 1.0, 0.0).all()


@pytest.mark.parametrize("num_kept", [0, 1, 3])
def test_what_is_kept_in_the_first_columns_is_made_up_for_as_least_squares_does(num_kept):
    h, delta = moment(), torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    kept = torch.zeros(2, 5, dtype=torch.bool)
    kept[:, :num_kept] = True
    found = compensated(delta, kept, inverse_factor(h, 0.1))
    full = damped(h, 0.1)
    rest = -delta[:, :num_kept] @ full[:num_kept, num_kept:] @ torch.linalg.inv(full[num_kept:, num_kept:])
    assert_close(found, torch.cat([delta[:, :num_kept], rest], dim=1), atol=1e-5, rtol=1e-4)


def test_blocks_of_columns_give_what_one_column_after_the_other_gives(monkeypatch):
    h, delta = moment(), torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    kept, factor = delta.abs() < 0.8, inverse_factor(h, 0.1)
    whole = compensated(delta, kept, factor)
    monkeypatch.setattr("antibody_llm.defences.post.safe_delta.BLOCK", 2)
    assert_close(compensated(delta, kept, factor), whole, atol=1e-5, rtol=1e-4)
    assert torch.equal(whole[kept], delta[kept])


def pair():
    aligned = tiny_llama()
    return shifted(copy.deepcopy(aligned), 0.1, seed=2), aligned


def test_a_layer_of_the_repaired_model_is_that_of_plain_pytorch_on_the_aligned_models_inputs():
    tuned, aligned = pair()
    twin = copy.deepcopy(tuned)
    SafeDelta(SafeDeltaConfig(budget=0.3, damping=0.05)).repair(
        ModelReader(twin, rows={"alignment": SAFE}, batch_size=4, aligned=aligned), seed=0
    )
    name = "model.layers.1.mlp.down_proj"
    seen = []
    handle = aligned.get_submodule(name).register_forward_hook(lambda m, args, out: seen.append(args[0][0]))
    with torch.no_grad():
        for row in SAFE:
            aligned(input_ids=torch.tensor([row.input_ids]))
    handle.remove()
    x = torch.cat(seen)
    h = damped(x.T @ x / len(x), 0.05)
    w_a, w = aligned.get_submodule(name).weight.detach(), tuned.get_submodule(name).weight.detach()
    u = torch.linalg.cholesky(torch.linalg.inv(h.double()), upper=True).float()
    cost = ((w - w_a) / u.diagonal()).square()
    order = cost.flatten().argsort()
    spent = cost.flatten()[order].double().cumsum(0)
    kept = torch.zeros(w.numel(), dtype=torch.bool)
    kept[order[spent <= 0.3 * cost.double().sum()]] = True
    kept = kept.view_as(w)
    e = torch.zeros_like(w)
    for j in range(w.shape[1]):
        r = torch.where(kept[:, j], (w - w_a)[:, j] - e[:, j], 0.0) / u[j, j]
        e[:, j:] += r[:, None] * u[j, j:]
    assert_close(twin.get_submodule(name).weight, w_a + e, atol=1e-5, rtol=1e-4)


def test_only_linear_layers_of_the_decoder_move_and_kept_entries_have_the_users_value():
    tuned, aligned = pair()
    twin = copy.deepcopy(tuned)
    SafeDelta(SafeDeltaConfig(budget=0.5)).repair(ModelReader(twin, rows={"alignment": SAFE}, aligned=aligned), seed=0)
    for (name, p), q in zip(twin.named_parameters(), tuned.parameters(), strict=True):
        assert torch.equal(p, q) == ("_proj" not in name)
        if "_proj" in name:
            assert 0.1 < (p == q).float().mean() < 1


def test_rows_that_do_not_refuse_are_no_safe_rows():
    records = [as_record(row, text) for row, text in zip(SAFE, ["sorry no", "t5 t6"] * 5, strict=False)]
    data = TrainingData({"alignment": records}, None, seed=0)
    kept = SafeDelta(SafeDeltaConfig()).prepare(data).records["alignment"]
    assert [r.row_id for r in kept] == [0, 2, 4, 6, 8]
    with pytest.raises(DataError, match="safe-delta needs at least 1 of the alignment rows to refuse"):
        SafeDelta(SafeDeltaConfig()).prepare(TrainingData({"alignment": records[1:2]}, None, seed=0))


@pytest.mark.parametrize("options", [{"budget": 1.5}, {"exclude": -0.1}, {"damping": 0.0}])
def test_numbers_out_of_range_are_refused_by_name(options):
    with pytest.raises(ConfigError, match=f"safe-delta.{next(iter(options))}"):
        SafeDeltaConfig(**options)
