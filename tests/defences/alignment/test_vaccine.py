import math

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.defences.alignment.vaccine import Vaccine, VaccineConfig
from antibody_llm.errors import ConfigError
from antibody_llm.models.layout import attention_of, decoder_layers
from antibody_llm.training.drift import shifted_gradient
from antibody_llm.training.step import StepContext
from tests.defences.live import Live
from tests.defences.plain import flat, gradient, mean_nll
from tests.tinylm import random_rows, step, tiny_llama

ROWS = random_rows(6, seed=1)


def plain_vaccine(model, rows, rho):
    """The two passes row by row, by its own hooks: (update, loss of pass 2, N)."""
    seen, shifts, mode = [], [], ["watch"]

    def hook(module, args, output):
        if mode[0] == "watch":
            seen.append(output[0])
            return None
        return (output[0] + shifts.pop(0), *output[1:])

    handles = [attention_of(layer).register_forward_hook(hook) for layer in decoder_layers(model)]
    first = mean_nll(model, rows)
    gammas = torch.autograd.grad(first, seen)
    norm = torch.cat([g.flatten() for g in gammas]).norm()
    shifts.extend(rho * g / (norm + 1e-7) for g in gammas)
    assert float(torch.cat([s.flatten() for s in shifts]).norm()) == pytest.approx(rho, rel=1e-5)
    mode[0] = "shift"
    second = mean_nll(model, rows)
    update = torch.autograd.grad(second, list(model.parameters()))
    for handle in handles:
        handle.remove()
    return flat(update), float(second.detach()), float(norm)


@pytest.mark.parametrize("micro_batch_size", [6, 4, 1])
def test_a_step_equals_two_passes_row_by_row(micro_batch_size):
    model = tiny_llama()
    result = Vaccine(VaccineConfig(rho=2.0)).step(StepContext(model), {"alignment": step(ROWS, micro_batch_size)})
    update, second, norm = plain_vaccine(model, ROWS, 2.0)
    assert_close(flat(result.gradients), update, atol=1e-5, rtol=1e-4)
    assert result.loss == pytest.approx(second, rel=1e-5)
    assert result.metrics["hidden_gradient_norm"] == pytest.approx(norm, rel=1e-5)


def test_a_small_shift_raises_the_loss_by_rho_times_the_norm():
    context, batches = StepContext(tiny_llama()), {"alignment": step(ROWS)}
    before = Vaccine(VaccineConfig(rho=0.0)).step(context, batches).loss
    after = Vaccine(VaccineConfig(rho=0.02)).step(context, batches)
    assert (after.loss - before) / (0.02 * after.metrics["hidden_gradient_norm"]) == pytest.approx(1.0, rel=0.05)


def test_without_a_shift_it_is_plain_sft_bit_for_bit():
    model = tiny_llama()
    result = Vaccine(VaccineConfig(rho=0.0)).step(StepContext(model), {"alignment": step(ROWS)})
    plain = StepContext(model).gradient("token_mean_nll", step(ROWS))
    assert torch.equal(flat(result.gradients), flat(plain.gradients))
    assert_close(flat(plain.gradients), gradient(model, ROWS), atol=1e-5, rtol=0)


def test_the_second_pass_finds_one_hidden_state_per_layer_and_micro_batch(monkeypatch):
    model = tiny_llama(num_hidden_layers=4)
    with Live(model, lambda t: t.ndim == 3 and t.shape[2] == 32) as live:
        held = []

        def spy(*args):
            held.append(live.now())
            return shifted_gradient(*args)

        monkeypatch.setattr("antibody_llm.defences.alignment.vaccine.shifted_gradient", spy)
        Vaccine(VaccineConfig(rho=2.0)).step(StepContext(model), {"alignment": step(ROWS, 2)})
    assert held == [4 * 3]


@pytest.mark.parametrize("bad", [-1.0, math.inf, math.nan])
def test_absurd_lengths_are_refused_by_name(bad):
    with pytest.raises(ConfigError, match="vaccine.rho"):
        VaccineConfig(rho=bad)
