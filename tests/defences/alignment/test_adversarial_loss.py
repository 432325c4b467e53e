import math

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.defences.alignment.adversarial_loss import AdversarialLoss, AdversarialLossConfig, adversarial_slope
from antibody_llm.errors import ConfigError
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat, gradient, mean_nll
from tests.tinylm import VOCAB, random_rows, step, tiny_llama

ALIGNMENT, HARMFUL = random_rows(5, seed=1), random_rows(5, seed=2)


def update(model, micro_batch_size=5, **options):
    batches = {"alignment": step(ALIGNMENT, micro_batch_size), "harmful": step(HARMFUL, micro_batch_size)}
    return AdversarialLoss(AdversarialLossConfig(**options)).step(StepContext(model), batches)


def test_slopes_by_hand():
    assert adversarial_slope(3.0, form="neglog1p", cap=math.inf) == -0.25
    assert adversarial_slope(4.0, form="neglog", cap=math.inf) == -0.25
    assert adversarial_slope(4.0, form="neg", cap=4.0) == -1.0
    assert adversarial_slope(4.1, form="neg", cap=4.0) == 0.0


@pytest.mark.parametrize("micro_batch_size", [5, 2])
@pytest.mark.parametrize(
    ("form", "term"),
    [("neglog1p", lambda h: -torch.log(1 + h)), ("neglog", lambda h: -torch.log(h)), ("neg", lambda h: -h)],
)
def test_a_step_is_the_gradient_of_the_whole_objective(form, term, micro_batch_size):
    model = tiny_llama()
    objective = mean_nll(model, ALIGNMENT) + 0.7 * term(mean_nll(model, HARMFUL))
    expected = flat(torch.autograd.grad(objective, list(model.parameters())))
    result = update(model, micro_batch_size, form=form, lam=0.7, cap=100.0)
    assert_close(flat(result.gradients), expected, atol=1e-5, rtol=0)


def test_above_the_cap_it_is_plain_sft_bit_for_bit():
    model = tiny_llama()
    h = float(mean_nll(model, HARMFUL).detach())
    plain = StepContext(model).gradient("token_mean_nll", step(ALIGNMENT))
    assert torch.equal(flat(update(model, form="neg", cap=h - 0.1).gradients), flat(plain.gradients))
    assert not torch.equal(flat(update(model, form="neg", cap=h + 0.1).gradients), flat(plain.gradients))


def test_unbounded_ascent_stops_by_itself_where_the_completion_is_no_likelier_than_chance():
    model = tiny_llama()
    at_random = float(mean_nll(model, HARMFUL).detach())
    result = update(model, form="neg")
    assert (result.metrics["harmful_weight"] == 0.0) == (at_random > math.log(VOCAB))


def test_the_log_form_pulls_the_same_however_the_harmful_loss_is_scaled():
    model = tiny_llama()
    g, h = gradient(model, HARMFUL), float(mean_nll(model, HARMFUL).detach())
    for scale in (1.0, 3.0):
        assert_close(adversarial_slope(scale * h, form="neglog", cap=math.inf) * scale * g, -g / h)


@pytest.mark.parametrize("bad", [{"lam": -1.0}, {"lam": math.nan}, {"cap": 0.0}])
def test_absurd_hyperparameters_are_refused_by_name(bad):
    with pytest.raises(ConfigError, match=f"adversarial-loss.{next(iter(bad))}"):
        AdversarialLossConfig(**bad)
