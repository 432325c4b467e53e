import math

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.defences.finetuning.ema import EMA, EMAConfig, average_into, decay
from antibody_llm.errors import ConfigError
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat
from tests.tinylm import random_rows, step, tick, ticks, tiny_llama

T = 4


def _scripted(num_steps: int = T, **options):
    """Weights at the start and after each step, what the optimiser had made of them, and the deployed ones."""
    context = StepContext(tiny_llama())
    tick(context, max_steps=num_steps)
    defence = EMA(EMAConfig(**options))
    defence.start(context)
    generator = torch.Generator().manual_seed(1)
    trained, kept = [], [flat([p.detach() for p in context.parameters])]
    for _ in ticks(context, num_steps):
        with torch.no_grad():
            for p in context.parameters:
                p += torch.randn(p.shape, generator=generator)
        trained.append(flat([p.detach() for p in context.parameters]))
        defence.after_update(context)
        kept.append(flat([p.detach() for p in context.parameters]))
    defence.finish(context)
    return kept, trained, flat([p.detach() for p in context.parameters])


def test_decay_leaves_half_after_its_share_of_the_run():
    assert decay(0.5, 10) ** 5 == pytest.approx(0.5)
    assert decay(0.2, 1000) ** 1000 == pytest.approx(2**-5)
    assert decay(0.0, 10) == 0.0
    assert decay(math.inf, 10) == 1.0


def test_shadow_deploys_the_closed_form_and_trains_on_undisturbed():
    kept, trained, deployed = _scripted(half_life=0.5)
    eta = 2 ** (-1 / 2)
    expected = eta**4 * kept[0] + (1 - eta) * sum(eta ** (4 - k) * trained[k - 1] for k in range(1, 5))
    assert_close(deployed, expected, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(kept[1:], trained, strict=True))


@pytest.mark.parametrize("variant", ["shadow", "feedback", "anchored"])
def test_without_half_life_the_trained_weights_stay_and_an_infinite_one_keeps_the_first(variant):
    kept, trained, deployed = _scripted(variant=variant, half_life=0.0)
    assert torch.equal(deployed, trained[-1])
    kept, _, deployed = _scripted(variant=variant, half_life=math.inf)
    assert torch.equal(deployed, kept[0])


def test_feedback_moves_a_share_of_every_update():
    kept, trained, _ = _scripted(variant="feedback", half_life=0.25)  # eta = 1/2
    for before, after, wanted in zip(kept[:-1], kept[1:], trained, strict=True):
        assert_close(after, 0.5 * before + 0.5 * wanted, atol=1e-6, rtol=1e-6)


def test_anchored_pulls_to_the_first_weights_at_every_second_step_only():
    kept, trained, _ = _scripted(variant="anchored", half_life=0.25, every=2)
    assert torch.equal(kept[1], trained[0])
    assert torch.equal(kept[3], trained[2])
    for t in (2, 4):
        assert_close(kept[t], 0.5 * kept[0] + 0.5 * trained[t - 1], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "rate", "settings"),
    [(torch.optim.SGD, 0.2, {"momentum": 0.9}), (torch.optim.AdamW, 0.01, {"weight_decay": 0.1})],
)
def test_feedback_is_plain_training_at_a_lower_rate(optimizer, rate, settings):
    ends = []
    for lr, options in ((rate, {"variant": "feedback", "half_life": 0.5}), (rate * (1 - 2**-0.5), {"half_life": 0.0})):
        context, defence = StepContext(tiny_llama().double()), EMA(EMAConfig(**options))
        tick(context, max_steps=T)
        defence.start(context)
        taking = optimizer(context.parameters, lr=lr, **settings)
        for _ in ticks(context, T):
            result = defence.step(context, {"user": step(random_rows(4, seed=context.step))})
            for p, g in zip(context.parameters, result.gradients, strict=True):
                p.grad = g
            taking.step()
            defence.after_update(context)
        ends.append(flat([p.detach() for p in context.parameters]))
    assert_close(ends[0], ends[1], atol=1e-7, rtol=0)


def test_small_steps_of_a_bf16_model_are_not_lost_in_the_average():
    v, w = [torch.ones(1)], [torch.full((1,), 1.0078125, dtype=torch.bfloat16)]  # the next number after 1
    for _ in range(100):
        average_into(v, v, w, 0.999)
    assert v[0].item() == pytest.approx(1 + 0.0078125 * (1 - 0.999**100), abs=1e-5)


def test_feedback_moves_bf16_weights_by_its_share_of_every_update_however_rare_these_are():
    context, num_steps = StepContext(tiny_llama().bfloat16()), 200
    tick(context, max_steps=num_steps)
    with torch.no_grad():
        for p in context.parameters:
            p.fill_(1.0)
    defence = EMA(EMAConfig(variant="feedback", half_life=1 / (num_steps * math.log2(1 / 0.9))))  # eta = .9
    defence.start(context)
    for _ in ticks(context, num_steps):
        with torch.no_grad():
            for p in context.parameters:
                p += 0.0078125 * (context.step % 10 == 9)  # to the next number, or nowhere
        defence.after_update(context)
        if context.step == 99:  # and as a resumed run goes on
            state = {name: tensor.clone() for name, tensor in defence.state().items()}
            defence = EMA(defence.config)
            defence.load_state(state)
    for p in context.parameters:  # 20 updates, a tenth of each
        assert torch.equal(p, torch.full_like(p, 1 + 2 * 0.0078125))


@pytest.mark.parametrize("bad", [{"half_life": -0.1}, {"half_life": math.nan}, {"every": 0}])
def test_absurd_hyperparameters_are_refused_by_name(bad):
    with pytest.raises(ConfigError, match=f"ema.{next(iter(bad))}"):
        EMAConfig(**bad)
