"""LDIFS against its equation: arithmetic by hand, and the update row by row in plain PyTorch."""

import copy

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.defences.finetuning.ldifs import LDIFS, LDIFSConfig, feature_drift
from antibody_llm.errors import ConfigError
from antibody_llm.models.adapters import add_lora
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat, gradient, mean_nll
from tests.tinylm import random_rows, step, tiny_llama

USER = random_rows(6, seed=1)


def begun(model, rho=0.7):
    context = StepContext(model, rows={"user": USER})
    defence = LDIFS(LDIFSConfig(rho=rho))
    defence.start(context)
    return context, defence


def shift(model, scale):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(scale * torch.randn(p.shape, generator=generator))


def features(model, ids):
    """Outputs of both feed-forward blocks, from the layers' own modules, one row at a time."""
    taken = []
    handles = [layer.mlp.register_forward_hook(lambda m, a, out: taken.append(out)) for layer in model.model.layers]
    model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return torch.cat([out.flatten() for out in taken])


def test_drift_is_the_sum_of_squares_over_layers_and_real_tokens():
    # Two layers, one feature, rows of 2 and 1 tokens: (1 + 4) + (9 + 0) = 14 and 16 + 1 = 17; padding not counted.
    now = [torch.tensor([[[1.0], [2.0]], [[4.0], [99.0]]]), torch.tensor([[[3.0], [0.0]], [[1.0], [99.0]]])]
    assert feature_drift(now, [torch.zeros(2, 2, 1)] * 2, [2, 1]).tolist() == [14.0, 17.0]


def test_at_the_start_the_update_is_plain_sfts():
    model = tiny_llama()
    context, defence = begun(model)
    result = defence.step(context, {"user": step(USER, 4)})
    assert_close(flat(result.gradients), gradient(model, USER), atol=1e-6, rtol=1e-5)
    assert result.metrics["feature_drift"] == pytest.approx(0, abs=1e-9)


def test_after_a_shift_the_update_is_autograds_of_the_token_mean_and_the_mean_drift_of_rows():
    model = tiny_llama()
    before = copy.deepcopy(model)
    context, defence = begun(model)
    shift(model, 0.02)
    result = defence.step(context, {"user": step(USER, 4)})
    drifts = [(features(model, r.input_ids) - features(before, r.input_ids).detach()).square().sum() for r in USER]
    loss = mean_nll(model, USER) + 0.35 * sum(drifts) / 6
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert_close(flat(result.gradients), expected, atol=2e-5, rtol=1e-4)
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    assert result.metrics["feature_drift"] == pytest.approx(float(sum(drifts).detach()) / 6, rel=1e-4)


def test_longer_neighbours_and_so_more_padding_change_nothing():
    model = tiny_llama()
    context, defence = begun(model)
    shift(model, 0.02)
    alone = flat(defence.step(context, {"user": step(USER, 1)}).gradients)
    padded = flat(defence.step(context, {"user": step(USER, 6)}).gradients)
    assert (alone - padded).norm() <= 1e-6 * alone.norm()


def test_with_an_adapter_that_has_moved_already_the_reference_is_where_it_started():
    model = add_lora(tiny_llama(), r=4, targets=["q_proj"], seed=0)
    shift(model, 0.1)  # an adapter that goes on from the alignment stage: not the bare base
    context, defence = begun(model)
    result = defence.step(context, {"user": step(USER, 4)})
    assert result.metrics["feature_drift"] == pytest.approx(0, abs=1e-9)
    assert sum(a.numel() for a in defence.anchor) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_with_dropout_both_forwards_have_the_same_mask_and_the_training_pass_that_of_plain_sft():
    model = add_lora(tiny_llama(), r=4, targets=["q_proj"], dropout=0.3, seed=0).train()
    shift(model, 0.1)
    context, defence = begun(model)
    torch.manual_seed(0)
    result = defence.step(context, {"user": step(USER, 4)})
    torch.manual_seed(0)
    plain = context.gradient("token_mean_nll", step(USER, 4))
    assert result.metrics["feature_drift"] == 0.0
    assert_close(flat(result.gradients), flat(plain.gradients), atol=1e-7, rtol=1e-5)


def test_a_negative_strength_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"ldifs.rho is -1"):
        LDIFSConfig(rho=-1.0)
