"""Panacea against its equations: arithmetic by hand, and the update row by row in plain PyTorch."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from antibody_llm.defences.finetuning import panacea
from antibody_llm.defences.finetuning.panacea import Panacea, PanaceaConfig, panacea_update
from antibody_llm.errors import ConfigError
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat, gradient, mean_nll, moved
from tests.tinylm import random_rows, step, tiny_llama
from tests.training.helpers import trainer, weights

USER, HARMFUL = random_rows(6, seed=1), random_rows(5, seed=3)


def by_hand(saturated):
    w = nn.Parameter(torch.zeros(2))
    return panacea_update(
        [w],
        user_gradient=lambda: [torch.tensor([1.0, 1.0])],
        harmful_gradient=lambda: [2 * w.detach() + torch.tensor([3.0, 4.0])],  # of |w|^2 + 3 w1 + 4 w2
        saturated=lambda: saturated,
        rho=0.5,
        lam=0.1,
    )


def test_update_by_hand():
    # g_h = (3, 4), |g_h| = 5, e = (0.3, 0.4); g_h' - g_h = 2 e = (0.6, 0.8); update = (1, 1) - 0.1 (0.6, 0.8).
    update, push = by_hand(saturated=False)
    assert_close(push[0], torch.tensor([0.3, 0.4]))
    assert_close(update[0], torch.tensor([0.94, 0.92]))


def test_the_users_gradient_is_taken_last_and_the_former_push_is_gone_by_then():
    # The pass at w + e holds four lists of this size already: neither of these may lie beside them.
    roles, pushes = [], []
    context, defence, _ = stepped(tiny_llama(), rho=0.1)
    swept, batches = context.gradient, {"user": step(USER, 4), "harmful": step(HARMFUL, 2)}

    def watched(loss, batch):
        roles.append(next(role for role, of_role in batches.items() if of_role is batch))
        pushes.append(len(defence.push))
        return swept(loss, batch)

    context.gradient = watched
    defence.step(context, batches)
    assert roles == ["harmful", "harmful", "user"]
    assert pushes == [0, 0, 0]
    assert defence.push


def test_at_the_ceiling_the_whole_bracket_goes_and_the_harmful_loss_is_not_descended():
    update, push = by_hand(saturated=True)
    assert update[0].tolist() == [1.0, 1.0]
    assert_close(push[0], torch.tensor([0.3, 0.4]))


def stepped(model, **options):
    context = StepContext(model, rows={"user": USER, "harmful": HARMFUL})
    defence = Panacea(PanaceaConfig(**options))
    return context, defence, defence.step(context, {"user": step(USER, 4), "harmful": step(HARMFUL, 2)})


def test_step_equals_three_plain_backward_passes(monkeypatch):
    monkeypatch.setattr(panacea, "CEILING", 100.0)
    model = tiny_llama()
    _, defence, result = stepped(model, rho=0.1, lam=2.0)
    g_h = gradient(model, HARMFUL)
    e = 0.1 * g_h / g_h.norm()
    expected = gradient(model, USER) - 2.0 * (gradient(moved(model, e), HARMFUL) - g_h)
    assert_close(flat(result.gradients), expected, atol=1e-4, rtol=1e-4)
    assert_close(flat(defence.push), e, atol=1e-6, rtol=1e-4)
    assert result.metrics["loss_pushed"] == pytest.approx(float(mean_nll(moved(model, e), HARMFUL).detach()), rel=1e-5)


def test_a_high_harmful_loss_leaves_the_users_gradient_alone(monkeypatch):
    monkeypatch.setattr(panacea, "CEILING", 0.5)
    model = tiny_llama()
    _, _, result = stepped(model, rho=0.1, lam=2.0)
    assert_close(flat(result.gradients), gradient(model, USER), atol=1e-5, rtol=1e-4)


def test_a_short_push_raises_the_harmful_loss_by_rho_times_the_gradients_norm():
    model = tiny_llama()
    norm = float(gradient(model, HARMFUL).norm())
    _, _, result = stepped(model, rho=1e-3)
    gain = result.metrics["loss_pushed"] - result.metrics["loss_harmful"]
    assert gain == pytest.approx(1e-3 * norm, rel=0.02)


def test_a_run_ends_rho_away_from_where_its_last_step_ended(tmp_path):
    class Watched(Panacea):
        def finish(self, context):
            self.before = [p.detach().clone() for p in context.parameters]
            super().finish(context)

    run = trainer(tmp_path, Watched(PanaceaConfig(rho=0.25, lam=0.1)), max_steps=2)
    run.train()
    difference = flat(list(weights(run).values())) - flat(run.defence.before)
    assert float(difference.norm()) == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("field", ["rho", "lam"])
def test_a_negative_number_is_refused_by_name(field):
    with pytest.raises(ConfigError, match=f"panacea.{field} is -1"):
        PanaceaConfig(**{field: -1.0})
