import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from antibody_llm.defences.alignment.booster import Booster, BoosterConfig, booster_update
from antibody_llm.errors import ConfigError
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat, gradient, moved
from tests.tinylm import random_rows, step, tiny_llama


def by_hand(h_scale=1.0, **options):
    # f = |w - (1, 0)|^2 / 2,  h = c (w_1^2 + 4 w_2^2) / 2  at w = (3, 1).
    w = nn.Parameter(torch.tensor([3.0, 1.0]))
    update = booster_update(
        [w],
        alignment_gradient=lambda: [w.detach() - torch.tensor([1.0, 0.0])],
        harmful_gradient=lambda: [h_scale * torch.tensor([1.0, 4.0]) * w.detach()],
        **options,
    )
    assert torch.equal(w, torch.tensor([3.0, 1.0]))
    return update[0]


def test_update_is_worked_out_by_hand_on_two_weights():
    # g_h = (3, 4), |g_h| = 5: w' = (3, 1) - 0.5 (0.6, 0.8) = (2.7, 0.6), grad h(w') = (2.7, 2.4), drop (0.3, 1.6).
    # g_f = (2, 1):  g_f + 2 (0.3, 1.6) = (2.6, 4.2).
    assert_close(by_hand(alpha=0.5, lam=2.0), torch.tensor([2.6, 4.2]))


def test_scaling_the_harmful_loss_scales_the_penalty_alike():
    g_f = torch.tensor([2.0, 1.0])
    assert_close(by_hand(3.0, alpha=0.5, lam=2.0) - g_f, 3 * (by_hand(alpha=0.5, lam=2.0) - g_f))


@pytest.mark.parametrize("micro_batch_size", [6, 2])
def test_a_step_equals_three_plain_gradients_on_copies(micro_batch_size):
    model = tiny_llama()
    alignment, harmful = random_rows(6, seed=1), random_rows(6, seed=2)
    batches = {"alignment": step(alignment, micro_batch_size), "harmful": step(harmful, micro_batch_size)}
    result = Booster(BoosterConfig(lam=2.0, alpha=0.1)).step(StepContext(model), batches)
    g_h = gradient(model, harmful)
    attacked = moved(model, -0.1 * g_h / (g_h.norm() + 1e-7))
    expected = gradient(model, alignment) + 2.0 * (g_h - gradient(attacked, harmful))
    assert_close(flat(result.gradients), expected, atol=1e-5, rtol=0)
    assert result.metrics["drop"] > 0


def test_half_the_radius_gives_half_the_penalty_where_it_is_small():
    model = tiny_llama().double()
    batches = {"alignment": step(random_rows(4, seed=1)), "harmful": step(random_rows(4, seed=2))}
    context = StepContext(model)
    plain = flat(context.gradient("token_mean_nll", batches["alignment"]).gradients)

    def penalty(alpha: float) -> torch.Tensor:
        return flat(Booster(BoosterConfig(alpha=alpha)).step(context, batches).gradients) - plain

    ratio = float(penalty(2e-2).norm() / penalty(1e-2).norm())
    assert ratio == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("options", [{"lam": 0.0}, {"alpha": 0.0}])
def test_without_weight_or_radius_it_is_plain_sft_bit_for_bit(options):
    model = tiny_llama()
    batches = {"alignment": step(random_rows(4, seed=1)), "harmful": step(random_rows(4, seed=2))}
    context = StepContext(model)
    result = Booster(BoosterConfig(**options)).step(context, batches)
    plain = context.gradient("token_mean_nll", batches["alignment"])
    assert all(torch.equal(a, b) for a, b in zip(result.gradients, plain.gradients, strict=True))


@pytest.mark.parametrize("bad", [{"lam": -1.0}, {"lam": math.inf}, {"alpha": math.nan}, {"alpha": -0.1}])
def test_absurd_hyperparameters_are_refused_by_name(bad):
    with pytest.raises(ConfigError, match=f"booster.{next(iter(bad))}"):
        BoosterConfig(**bad)
