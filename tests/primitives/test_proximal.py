import pytest
import torch
from torch import nn
from torch.testing import assert_close

from antibody_llm.primitives.proximal import proximal_penalty, proximal_pull
from antibody_llm.primitives.snapshots import snapshot


def _weights():
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(3, 4, generator=generator)), nn.Parameter(torch.randn(5, generator=generator))]
    anchor = [torch.randn(p.shape, generator=generator) for p in params]
    importance = [torch.rand(p.shape, generator=generator) for p in params]
    return params, anchor, importance


def test_pull_and_penalty_are_worked_out_by_hand():
    w, a, importance = [torch.tensor([3.0, 1.0])], [torch.tensor([1.0, 2.0])], [torch.tensor([1.0, 4.0])]
    # w - a = (2, -1): rho (w - a) = (1, -0.5), R = 0.25 (4 + 1); with F: (1, -2), R = 0.25 (4 + 4).
    assert_close(proximal_pull(w, a, 0.5)[0], torch.tensor([1.0, -0.5]))
    assert proximal_penalty(w, a, 0.5) == 1.25
    assert_close(proximal_pull(w, a, 0.5, importance)[0], torch.tensor([1.0, -2.0]))
    assert proximal_penalty(w, a, 0.5, importance) == 2.0


@pytest.mark.parametrize("weighted", [False, True])
def test_pull_is_the_derivative_of_the_penalty(weighted):
    params, anchor, importance = _weights()
    weights = importance if weighted else [torch.ones_like(a) for a in anchor]
    penalty = 0.7 / 2 * sum((f * (p - a) ** 2).sum() for p, a, f in zip(params, anchor, weights, strict=True))
    expected = torch.autograd.grad(penalty, params)
    given = importance if weighted else None
    for ours, theirs in zip(proximal_pull(params, anchor, 0.7, given), expected, strict=True):
        assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert proximal_penalty(params, anchor, 0.7, given) == pytest.approx(penalty.item(), rel=1e-6)


def test_at_the_anchor_the_pull_is_exactly_zero():
    params, _, importance = _weights()
    anchor = snapshot(params)
    for pull in (proximal_pull(params, anchor, 1e6), proximal_pull(params, anchor, 1e6, importance)):
        assert all(torch.equal(d, torch.zeros_like(d)) for d in pull)
    assert proximal_penalty(params, anchor, 1e6) == 0.0


def test_pull_leaves_the_weights_and_the_anchor_alone():
    params, anchor, _ = _weights()
    before = [t.detach().clone() for t in (*params, *anchor)]
    proximal_pull(params, anchor, 0.3)
    assert all(torch.equal(a, b) for a, b in zip((*params, *anchor), before, strict=True))
