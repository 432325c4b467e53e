import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from antibody_llm.defences.alignment.seam import Seam, SeamConfig, cosine_gradient
from antibody_llm.errors import ConfigError
from antibody_llm.training.step import StepContext
from tests.defences.live import Live
from tests.defences.plain import flat, gradient, moved
from tests.tinylm import random_rows, step, tiny_llama
from tests.training.test_lens import plain_lens


def test_the_gradient_of_the_cosine_is_worked_out_by_hand_on_two_weights():
    # h = (w_1^2 + 4 w_2^2) / 2,  b = (w_1^2 + w_2^2) / 2  at w = (1, 0): g_a = g_b = (1, 0), so c = 1 and u = v = 0.
    # At w = (0.6, 0.8):  g_b = w, n_b = 1;  g_a = (0.6, 3.2), n_a = 3.25576;  c = 2.92 / n_a = 0.896871.
    # u = w - c g_a/n_a = (0.434717, -0.081509),  v = g_a/n_a - c w = (-0.353834, 0.265376).
    # H_a u / n_a + H_b v / n_b = (0.133522 - 0.353834, -0.100142 + 0.265376).
    scale = torch.tensor([1.0, 4.0], dtype=torch.float64)

    def at(w: list[float]):
        p = nn.Parameter(torch.tensor(w, dtype=torch.float64))
        found, c = cosine_gradient(
            [p],
            harmful_gradient=lambda: [scale * p.detach()],
            benign_gradient=lambda: [p.detach().clone()],
            epsilon=1e-3,
        )
        assert p.tolist() == w
        return found[0], float(c)

    found, c = at([0.6, 0.8])
    assert c == pytest.approx(0.896871, abs=1e-5)
    assert_close(found, torch.tensor([-0.220312, 0.165234], dtype=torch.float64), atol=1e-4, rtol=0)
    found, c = at([1.0, 0.0])
    assert c == pytest.approx(1.0, abs=1e-6)
    assert_close(found, torch.zeros(2, dtype=torch.float64), atol=1e-6, rtol=0)


def test_forward_differences_agree_with_double_backward():
    generator = torch.Generator().manual_seed(0)
    w = nn.Parameter(torch.randn(5, generator=generator, dtype=torch.float64))
    x = torch.randn(2, 5, generator=generator, dtype=torch.float64)

    def g(row: int, graph: bool = False) -> torch.Tensor:
        loss = torch.logaddexp((x[row] * w).sum(), (w**3).sum() / 3 + (row + 1) * (w**2).sum())
        return torch.autograd.grad(loss, w, create_graph=graph)[0]

    exact = torch.autograd.grad(torch.cosine_similarity(g(0, True), g(1, True), dim=0), w)[0]
    errors = []
    for epsilon in (1e-3, 1e-4):
        found, _ = cosine_gradient(
            [w], harmful_gradient=lambda: [g(0)], benign_gradient=lambda: [g(1)], epsilon=epsilon
        )
        errors.append(float((found[0] - exact).norm() / exact.norm()))
    assert errors[0] < 1e-2
    assert errors[1] < 0.2 * errors[0]  # first order


@pytest.mark.parametrize("micro_batch_size", [4, 2])
def test_a_step_equals_six_plain_gradients_on_copies(micro_batch_size):
    model = tiny_llama()
    alignment, harmful, benign = (random_rows(4, seed=s) for s in (1, 2, 3))
    batches = {"alignment": alignment, "harmful": harmful, "benign": benign}
    config = SeamConfig(alpha=0.7, beta=0.5, epsilon=0.05)
    result = Seam(config).step(StepContext(model), {k: step(v, micro_batch_size) for k, v in batches.items()})

    a = plain_lens(model, harmful)
    unlearning = flat(torch.autograd.grad(-torch.log(1 + a), list(model.parameters())))
    g_a, g_b = gradient(model, harmful), gradient(model, benign)
    unit_a, unit_b = g_a / g_a.norm(), g_b / g_b.norm()
    c = unit_a.dot(unit_b)
    by_a = (gradient(moved(model, 0.05 * (unit_b - c * unit_a)), harmful) - g_a) / g_a.norm()
    by_b = (gradient(moved(model, 0.05 * (unit_a - c * unit_b)), benign) - g_b) / g_b.norm()
    expected = unlearning + 0.7 * gradient(model, alignment) + 0.5 / 0.05 * (by_a + by_b)
    assert_close(flat(result.gradients), expected, atol=5e-5, rtol=1e-4)
    assert result.metrics["cosine"] == pytest.approx(float(c), abs=1e-5)


def test_without_coupling_it_is_unlearning_and_alignment_alone():
    model = tiny_llama()
    batches = {role: step(random_rows(4, seed=s)) for s, role in enumerate(("alignment", "harmful", "benign"))}
    context = StepContext(model)
    result = Seam(SeamConfig(beta=0.0, alpha=0.5)).step(context, batches)
    a = plain_lens(model, random_rows(4, seed=1))
    unlearning = flat(torch.autograd.grad(-torch.log(1 + a), list(model.parameters())))
    assert_close(flat(result.gradients), unlearning + 0.5 * gradient(model, random_rows(4, seed=0)), atol=1e-5, rtol=0)


def test_a_step_holds_five_gradients_and_a_copy_of_the_weights_more_than_plain_sft():
    model = tiny_llama(intermediate_size=97)
    context = StepContext(model)
    batches = {role: step(random_rows(4, seed=s)) for s, role in enumerate(("alignment", "harmful", "benign"))}
    with Live(model, lambda t: tuple(t.shape) in ((97, 32), (32, 97))) as plain:
        context.gradient("token_mean_nll", batches["alignment"])
    with Live(model, lambda t: tuple(t.shape) in ((97, 32), (32, 97))) as ours:
        Seam(SeamConfig()).step(context, batches)
    num = sum(97 in p.shape for p in model.parameters())
    assert (ours.peak - plain.peak) // num == 5 + 1  # and a tensor or two in the middle of a sum


def test_a_model_in_half_precision_is_refused():
    context = StepContext(tiny_llama().bfloat16(), rows={"alignment": random_rows(4)})
    with pytest.raises(ConfigError, match="seam: the model computes in half precision"):
        Seam(SeamConfig()).check(context)


@pytest.mark.parametrize("bad", [{"alpha": -1.0}, {"beta": math.nan}, {"epsilon": 0.0}])
def test_absurd_hyperparameters_are_refused_by_name(bad):
    with pytest.raises(ConfigError, match=f"seam.{next(iter(bad))}"):
        SeamConfig(**bad)
