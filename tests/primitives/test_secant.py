import pytest
import torch
from torch import nn
from torch.testing import assert_close

from antibody_llm.primitives.secant import secant


def test_on_a_quadratic_the_secant_is_minus_s_times_the_hessian_along_the_unit_gradient():
    # h = (w_1^2 + 4 w_2^2) / 2 at w = (3, 1): g = (3, 4), |g| = 5, so D = -s H g/|g| = -s (0.6, 3.2).
    w = nn.Parameter(torch.tensor([3.0, 1.0]))
    for s in (-0.5, 0.25):
        result = secant([w], lambda: [torch.tensor([1.0, 4.0]) * w.detach()], s)
        assert_close(result.difference[0], -s * torch.tensor([0.6, 3.2]))
        assert_close(result.direction[0], torch.tensor([0.6, 0.8]))
        assert torch.equal(w, torch.tensor([3.0, 1.0]))


def test_for_a_small_step_the_secant_points_along_the_gradient_of_the_gradient_norm():
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(4, dtype=torch.float64))

    def g() -> list[torch.Tensor]:
        return list(torch.autograd.grad((w**4).sum() + w.prod(), [w], create_graph=True))

    expected = torch.autograd.grad(g()[0].norm(), [w])[0]
    found = secant([w], lambda: [x.detach() for x in g()], -1e-5).difference[0]
    assert_close(found / 1e-5, expected, atol=1e-3, rtol=1e-3)


def test_no_step_no_secant_and_a_zero_gradient_moves_nothing():
    w = nn.Parameter(torch.tensor([3.0, 1.0]))
    assert (secant([w], lambda: [w.detach().clone()], 0.0).difference[0] == 0).all()
    assert (secant([w], lambda: [torch.zeros(2)], 1.0).difference[0] == 0).all()


def test_weights_are_restored_when_the_second_gradient_raises():
    w = nn.Parameter(torch.tensor([3.0, 1.0]))
    calls: list[int] = []

    def gradient() -> list[torch.Tensor]:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("the second")
        return [w.detach().clone()]

    with pytest.raises(RuntimeError, match="the second"):
        secant([w], gradient, 1.0)
    assert torch.equal(w, torch.tensor([3.0, 1.0]))
