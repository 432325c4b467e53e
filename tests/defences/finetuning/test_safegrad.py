"""SafeGrad against its equation: the projection by hand, and the update in plain PyTorch."""

import copy

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.defences.finetuning.safegrad import SafeGrad, SafeGradConfig, without_conflict
from antibody_llm.errors import ConfigError
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat, gradient, shifted, token_logits
from tests.tinylm import random_rows, step, tiny_llama

USER, SAFE = random_rows(6, seed=1), random_rows(5, seed=2, num_turns=2)


def begun(model, rho=0.5):
    context = StepContext(model, rows={"user": USER, "alignment": SAFE})
    defence = SafeGrad(SafeGradConfig(rho=rho))
    defence.start(context)
    return context, defence


def divergence_gradient(model, before):
    total = 0.0
    for row in SAFE:
        p, q = token_logits(before, row).softmax(-1).detach(), token_logits(model, row).log_softmax(-1)
        total = total + (p * (p.log() - q)).sum()
    total = total / sum(end - start for row in SAFE for start, end in row.spans)
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(model.parameters()))])


def test_what_points_against_safety_is_removed_over_all_tensors_together():
    # g_u = (1, -2), g_a = (1, 1) in two tensors: product -1, |g_a|^2 = 2, so g_u' = (1, -2) + (1, 1) / 2.
    found, cosine = without_conflict(
        [torch.tensor([1.0]), torch.tensor([-2.0])], [torch.tensor([1.0]), torch.tensor([1.0])]
    )
    assert flat(found).tolist() == [1.5, -1.5]
    assert cosine == pytest.approx(-1 / 10**0.5)


@pytest.mark.parametrize("safety", [[1.0, 3.0], [0.0, 0.0]])
def test_a_gradient_that_does_not_point_against_safety_is_kept_bit_for_bit(safety):
    found, _ = without_conflict([torch.tensor([1.0, 2.0])], [torch.tensor(safety)])
    assert flat(found).tolist() == [1.0, 2.0]


def test_the_first_update_is_plain_sfts():
    model = tiny_llama()
    context, defence = begun(model)
    result = defence.step(context, {"user": step(USER, 4), "alignment": step(SAFE, 4)})
    assert_close(flat(result.gradients), gradient(model, USER), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_after_a_shift_the_update_is_that_of_plain_pytorch(seed):
    model = tiny_llama()
    before = copy.deepcopy(model)
    context, defence = begun(model)
    shifted(model, 0.03, seed)
    result = defence.step(context, {"user": step(USER, 4), "alignment": step(SAFE, 2)})
    u, a = gradient(model, USER), divergence_gradient(model, before)
    expected = u - min(float(u @ a), 0.0) / (a @ a) * a + 0.5 * a
    assert_close(flat(result.gradients), expected, atol=2e-5, rtol=1e-3)
    assert result.metrics["cosine"] == pytest.approx(float(u @ a / (u.norm() * a.norm())), abs=1e-5)


def test_a_negative_weight_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"safegrad.rho is -1"):
        SafeGradConfig(rho=-1.0)
