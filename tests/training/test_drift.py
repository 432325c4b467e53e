import pytest
import torch
from torch.testing import assert_close

from antibody_llm.models.layout import attention_of, decoder_layers
from antibody_llm.training.drift import hidden_gradients, norms, shifted_gradient, worst_shift
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat
from tests.tinylm import random_rows, step, tiny_llama

ROWS = random_rows(6, seed=1)


def attentions(model):
    return [attention_of(layer) for layer in decoder_layers(model)]


def test_the_worst_shift_by_hand():
    # gammas (3, 0) and (0, 4) in two micro-batches: N = 5, rho = 10 gives (6, 0) and (0, 8).
    shifts = worst_shift([[torch.tensor([3.0, 0.0])], [torch.tensor([0.0, 4.0])]], 5.0, 10.0)
    assert_close(shifts, [[torch.tensor([6.0, 0.0])], [torch.tensor([0.0, 8.0])]])
    assert (worst_shift([[torch.zeros(2)]], 0.0, 10.0)[0][0] == 0).all()


@pytest.mark.parametrize("layer", [0, 1])
def test_a_hidden_gradient_is_the_slope_of_the_loss_along_that_hidden_state(layer):
    model = tiny_llama()
    context, batch, modules = StepContext(model), step(ROWS), attentions(model)
    gammas = hidden_gradients(context, batch, modules)

    def loss(size: float) -> float:
        nudges = [[size * g if i == layer else torch.zeros_like(g) for i, g in enumerate(gammas[0])]]
        return shifted_gradient(context, batch, modules, nudges).loss

    slope = float(gammas[0][layer].square().sum())
    assert (loss(1.0) - loss(-1.0)) / 2 == pytest.approx(slope, rel=0.02)


def test_norms_do_not_depend_on_how_the_step_is_cut():
    model = tiny_llama()
    context, modules = StepContext(model), attentions(model)
    whole = norms(context, hidden_gradients(context, step(ROWS), modules))
    cut = norms(context, hidden_gradients(context, step(ROWS, 4), modules))
    assert_close(whole, cut, atol=0, rtol=1e-5)


def test_a_shift_of_zero_changes_no_bit_and_a_frozen_layer_has_hidden_gradients_too():
    model = tiny_llama()
    context, batch, modules = StepContext(model), step(ROWS, 4), attentions(model)
    gammas = hidden_gradients(context, batch, modules)
    still = shifted_gradient(context, batch, modules, worst_shift(gammas, 1.0, 0.0)).gradients
    plain = context.gradient("token_mean_nll", batch).gradients
    assert torch.equal(flat(still), flat(plain))
    model.requires_grad_(False)
    frozen = hidden_gradients(context, batch, modules)
    assert_close(frozen, gammas)


def test_gradient_checkpointing_changes_no_bit_of_a_shifted_step():
    found = []
    for checkpointing in (False, True):
        model = tiny_llama().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        context, batch, modules = StepContext(model), step(ROWS, 4), attentions(model)
        gammas = hidden_gradients(context, batch, modules)
        shifts = worst_shift(gammas, norms(context, gammas).norm(), 2.0)
        found.append(flat(shifted_gradient(context, batch, modules, shifts).gradients))
    assert torch.equal(*found)
