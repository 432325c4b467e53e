import math

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.defences.alignment.repnoise import RepNoise, RepNoiseConfig, harmful_terms, mmd, normal
from antibody_llm.errors import ConfigError
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat, gradient
from tests.tinylm import micro, random_rows, step, tick, tiny_llama
from tests.training.test_lens import plain_lens

ALIGNMENT, HARMFUL = random_rows(5, seed=1), random_rows(4, seed=2)
BATCHES = {"alignment": step(ALIGNMENT), "harmful": step(HARMFUL)}


def test_mmd_by_hand_on_one_row_each():
    # x = (0), y = (2): D = 4 off the diagonal, s = 4 / 4 = 1. k_xx = k_yy = 5, k_xy = sum_i exp(-4 / 2^i).
    expected = 10 - 2 * sum(math.exp(-4 / 2**i) for i in range(5))
    assert float(mmd(torch.tensor([[0.0]]), torch.tensor([[2.0]]))) == pytest.approx(expected, rel=1e-6)


def broadcast_mmd(x, y):
    """As released: all differences, one kernel after the other."""
    rows = torch.cat([x, y])
    distances = (rows[None] - rows[:, None]).square().sum(dim=2)
    n, b = len(rows), len(x)
    width = distances.detach().sum() / (n * n - n) / 4
    k = sum(torch.exp(-distances / (width * 2**i)) for i in range(5))
    return (k[:b, :b] + k[b:, b:] - k[:b, b:] - k[b:, :b]).mean()


def test_mmd_by_inner_products_is_mmd_by_differences_with_its_gradient():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 30, generator=generator, requires_grad=True)
    y = torch.randn(4, 30, generator=generator) + 0.5
    assert_close(mmd(x, y), broadcast_mmd(x, y), atol=1e-5, rtol=1e-5)
    ours, plain = (torch.autograd.grad(f(x, y), x)[0] for f in (mmd, broadcast_mmd))
    assert_close(ours, plain, atol=1e-5, rtol=1e-4)


def test_mmd_is_zero_between_equal_rows_in_any_order_and_finite_between_equal_points():
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    assert float(mmd(x, x[[3, 1, 4, 0, 2]])) == pytest.approx(0.0, abs=1e-6)
    assert float(mmd(torch.ones(2, 3), torch.ones(2, 3))) == pytest.approx(0.0, abs=1e-6)


def plain_noise(model, rows, context, position=0):
    """The noise term from activations taken row by row and laid out by hand."""
    longest = max(len(row.input_ids) for row in rows)
    flat_a, flat_z = [], []
    for number, layer in enumerate(model.model.layers):
        z = normal((len(rows), longest, model.config.hidden_size), context.seed, context.step, position, number)
        padded_a, padded_z = torch.zeros_like(z), torch.zeros_like(z)
        kept = []
        for i, row in enumerate(rows):
            seen = []
            handle = layer.mlp.register_forward_hook(lambda m, a, output, seen=seen: seen.append(output[0]))
            model(input_ids=torch.tensor([row.input_ids]))
            handle.remove()
            start, end = row.spans[0]
            padded_z[i, start:end] = z[i, start:end]
            kept.append(torch.cat([padded_a[i, :start], seen[0][start:end], padded_a[i, end:]]))
        flat_a.append(torch.stack(kept).flatten(1))
        flat_z.append(padded_z.flatten(1))
    return sum(broadcast_mmd(a, z) for a, z in zip(flat_a, flat_z, strict=True)) / len(flat_a)


@pytest.mark.parametrize("micro_batch_size", [4, 2])
def test_a_step_is_the_gradient_of_the_whole_objective(micro_batch_size):
    model = tiny_llama()
    context = StepContext(model, seed=5)
    tick(context, step=3)
    batches = {"alignment": step(ALIGNMENT, micro_batch_size), "harmful": step(HARMFUL, micro_batch_size)}
    result = RepNoise(RepNoiseConfig(alpha=0.7, beta=0.5)).step(context, batches)
    starts = range(0, 4, micro_batch_size)
    cuts = [HARMFUL[start : start + micro_batch_size] for start in starts]
    noises = [plain_noise(model, cut, context, start) for cut, start in zip(cuts, starts, strict=True)]
    rest = [0.5 * n - 0.7 * torch.log(1 + plain_lens(model, cut)) for n, cut in zip(noises, cuts, strict=True)]
    parts = torch.autograd.grad(sum(rest) / len(rest), list(model.parameters()))
    assert_close(flat(result.gradients), gradient(model, ALIGNMENT) + flat(parts), atol=2e-5, rtol=0)
    assert result.metrics["noise"] == pytest.approx(float(sum(noises).detach()) / len(noises), rel=1e-4)


def test_what_is_logged_is_the_mean_over_rows_however_many_a_forward_pass_has():
    context = StepContext(tiny_llama())
    batches = BATCHES | {"harmful": step(HARMFUL, 3)}  # three rows and one
    result = RepNoise(RepNoiseConfig(alpha=0.7, beta=0.5)).step(context, batches)
    parts = [harmful_terms(context, m, alpha=0.7, beta=0.5)[1] for m in batches["harmful"].micro_batches]
    noise, ascent = ((3 * parts[0] + parts[1]) / 4).tolist()
    assert result.metrics == pytest.approx({"noise": noise, "loss_lens": ascent}, rel=1e-5)


def test_noise_is_another_at_every_step_and_the_same_at_the_same_step():
    context = StepContext(tiny_llama())
    values = []
    for number in (0, 1, 0):
        tick(context, step=number)
        values.append(float(harmful_terms(context, micro(HARMFUL), alpha=0.0, beta=1.0)[1][0]))
    assert values[0] == values[2] != values[1]


def test_without_both_weights_it_is_plain_sft_bit_for_bit():
    model = tiny_llama()
    result = RepNoise(RepNoiseConfig(alpha=0.0, beta=0.0)).step(StepContext(model), BATCHES)
    plain = StepContext(model).gradient("token_mean_nll", BATCHES["alignment"])
    assert torch.equal(flat(result.gradients), flat(plain.gradients))


@pytest.mark.parametrize("bad", [{"alpha": -1.0}, {"beta": math.inf}])
def test_absurd_hyperparameters_are_refused_by_name(bad):
    with pytest.raises(ConfigError, match=f"repnoise.{next(iter(bad))}"):
        RepNoiseConfig(**bad)
