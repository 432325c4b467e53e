import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from antibody_llm.defences.alignment.antibody import (
    AntibodyAlignment,
    AntibodyAlignmentConfig,
    adaptive_lambda,
    antibody_update,
)
from antibody_llm.errors import ConfigError
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat, gradient, moved, refused
from tests.tinylm import random_refusals, random_rows, step, tick, tiny_llama


def test_update_is_worked_out_by_hand_on_two_weights():
    # f = |w - (1, 0)|^2 / 2,  h = (w_1^2 + 4 w_2^2) / 2,  r = |w - (0, 1)|^2 / 2  at w = (3, 1).
    w = nn.Parameter(torch.tensor([3.0, 1.0]))
    scale = torch.tensor([1.0, 4.0])
    update = antibody_update(
        [w],
        alignment_gradient=lambda: [w.detach() - torch.tensor([1.0, 0.0])],
        harmful_gradient=lambda: [scale * w.detach()],
        attacked_gradients=lambda: ([scale * w.detach()], [w.detach() - torch.tensor([0.0, 1.0])]),
        alpha=0.5,
        lam=lambda g_a, d: 2.0,
        lam2=0.5,
    )
    # g_h = (3, 4), |g_h| = 5, so w_pert = (3, 1) - 0.5 (0.6, 0.8) = (2.7, 0.6) and g_p = (2.7, 2.4).
    # d = (0.3, 1.6); g_a = (2, 1); g_r = (2.7, -0.4):  g_a + 2 d + 0.5 g_r = (3.95, 4.0).
    assert_close(update[0], torch.tensor([3.95, 4.0]))
    assert torch.equal(w, torch.tensor([3.0, 1.0]))


def test_lambda_in_both_normalisations_by_hand():
    g_a, d = [torch.tensor([3.0, 4.0])], [torch.tensor([0.0, 2.0])]
    # <g_a, d> = 8, |g_a| = 5, |d| = 2: cos = 0.8; <g_a, d> / |d|^2 = 2.
    assert adaptive_lambda(g_a, d, eta=1.0, normalisation="cosine").item() == pytest.approx(0.2)
    assert adaptive_lambda(g_a, d, eta=5.0, normalisation="kkt").item() == pytest.approx(3.0)
    assert adaptive_lambda(g_a, d, eta=1.0, normalisation="kkt").item() == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_kkt_lambda_makes_the_update_flatten_at_least_eta(seed):
    generator = torch.Generator().manual_seed(seed)
    g_a, d = torch.randn(50, generator=generator), torch.randn(50, generator=generator)
    lam = adaptive_lambda([g_a], [d], eta=0.3, normalisation="kkt")
    assert torch.dot(d, g_a + lam.float() * d) >= 0.3 * torch.dot(d, d) - 1e-4


@pytest.mark.parametrize("normalisation", ["cosine", "kkt"])
@pytest.mark.parametrize("micro_batch_size", [6, 2])
def test_two_steps_equal_four_plain_gradients_on_copies(normalisation, micro_batch_size):
    model, refusals = tiny_llama(), random_refusals()
    alignment, harmful = random_rows(6, seed=1), random_rows(6, seed=2)
    config = AntibodyAlignmentConfig(alpha=0.1, eta=2.0, m=0.9, lam2=0.3, normalisation=normalisation)
    defence, context = AntibodyAlignment(config), StepContext(model, refusals=refusals)
    lam = None
    for number in range(2):
        tick(context, step=number)
        batches = {"alignment": step(alignment, micro_batch_size), "harmful": step(harmful, micro_batch_size)}
        update = flat(defence.step(context, batches).gradients)

        g_a, g_h = gradient(model, alignment), gradient(model, harmful)
        attacked = moved(model, -0.1 * g_h / (g_h.norm() + 1e-7))
        with_refusals = [refused(r, refusals.ids[r.template][(number * 6 + i) % 5]) for i, r in enumerate(harmful)]
        d, g_r = g_h - gradient(attacked, harmful), gradient(attacked, with_refusals)
        by = d.dot(d) if normalisation == "kkt" else g_a.norm() * d.norm()
        raw = max(0.0, 2.0 - float(g_a.dot(d) / by))
        lam = raw if lam is None else 0.9 * lam + 0.1 * raw
        expected = g_a + lam * d + 0.3 * g_r
        assert_close(update, expected, atol=1e-5, rtol=0)
        assert float(defence.lam) == pytest.approx(lam, rel=1e-4)


def test_a_constant_lambda_of_zero_without_refusals_is_plain_sft_bit_for_bit():
    model = tiny_llama()
    batches = {"alignment": step(random_rows(4, seed=1)), "harmful": step(random_rows(4, seed=2))}
    context = StepContext(model, refusals=random_refusals())
    result = AntibodyAlignment(AntibodyAlignmentConfig(lam=0.0, lam2=0.0)).step(context, batches)
    plain = context.gradient("token_mean_nll", batches["alignment"])
    assert all(torch.equal(a, b) for a, b in zip(result.gradients, plain.gradients, strict=True))


def test_without_radius_there_is_no_sharpness():
    model = tiny_llama()
    batches = {"alignment": step(random_rows(4, seed=1)), "harmful": step(random_rows(4, seed=2))}
    result = AntibodyAlignment(AntibodyAlignmentConfig(alpha=0.0)).step(
        StepContext(model, refusals=random_refusals()), batches
    )
    assert result.metrics["sharpness"] == 0.0


def test_the_average_of_lambda_survives_a_checkpoint():
    defence = AntibodyAlignment(AntibodyAlignmentConfig(m=0.5))
    g, d = [torch.tensor([1.0, 0.0])], [torch.tensor([0.0, 1.0])]
    defence._lambda(g, d)  # 5
    twin = AntibodyAlignment(AntibodyAlignmentConfig(m=0.5))
    twin.load_state(defence.state())
    assert float(twin._lambda(g, [torch.tensor([1.0, 0.0])])) == pytest.approx(0.5 * 5 + 0.5 * 4)


@pytest.mark.parametrize("bad", [{"alpha": -1.0}, {"eta": math.nan}, {"m": 1.0}, {"lam2": math.inf}, {"lam": -0.1}])
def test_absurd_hyperparameters_are_refused_by_name(bad):
    with pytest.raises(ConfigError, match=f"antibody.{next(iter(bad))}"):
        AntibodyAlignmentConfig(**bad)
