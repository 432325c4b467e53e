import collections
import copy
import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from antibody_llm.defences.alignment.t_vaccine import TVaccine, TVaccineConfig, drawn_layers, layer_probabilities
from antibody_llm.defences.alignment.vaccine import Vaccine, VaccineConfig
from antibody_llm.errors import ConfigError
from antibody_llm.models.adapters import add_lora
from antibody_llm.models.layout import decoder_layers
from antibody_llm.training.drift import shifted_gradient
from antibody_llm.training.step import StepContext
from tests.defences.live import Live
from tests.defences.plain import flat
from tests.tinylm import random_rows, step, tick, tiny_llama
from tests.training.helpers import trainer, weights

BATCHES = {"alignment": step(random_rows(6, seed=1), 4), "harmful": step(random_rows(5, seed=2), 4)}


def test_probabilities_are_the_shares_of_the_scores():
    assert_close(layer_probabilities(torch.tensor([1.0, 3.0, 4.0])), torch.tensor([0.125, 0.375, 0.5]))


def test_inclusion_frequencies_are_those_of_sequential_draws_without_replacement():
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    counts = collections.Counter(layer for draw in range(2000) for layer in drawn_layers(p, 2, seed=1, draw=draw))
    # In S = not drawn last. Layer 0 is left out with .3 * .2 / .7 + .2 * .3 / .8 = .1607, layer 1 with
    # .5 * .2 / .5 + .2 * .5 / .8 = .325.
    assert counts[0] / 2000 == pytest.approx(1 - 0.1607, abs=0.035)
    assert counts[1] / 2000 == pytest.approx(1 - 0.325, abs=0.035)


def test_all_layers_drawn_is_vaccine_bit_for_bit():
    model = tiny_llama()
    ours = TVaccine(TVaccineConfig(rho=2.0, gamma=2)).step(StepContext(model), BATCHES)
    vaccine = Vaccine(VaccineConfig(rho=2.0)).step(StepContext(model), BATCHES)
    assert torch.equal(flat(ours.gradients), flat(vaccine.gradients))
    assert not ours.frozen


@pytest.mark.parametrize("freeze", ["layers", "attention"])  # "release": against a run of it, below
def test_the_weights_of_resting_layers_are_frozen_and_no_others(freeze):
    model = tiny_llama()
    context = StepContext(model)
    defence = TVaccine(TVaccineConfig(rho=2.0, gamma=1, freeze=freeze))
    result = defence.step(context, BATCHES)
    asleep = decoder_layers(model)[1 - defence.drawn[0]]
    expected = {id(p) for p in (asleep if freeze == "layers" else asleep.self_attn).parameters()}
    assert {id(context.parameters[i]) for i in result.frozen} == expected
    for i, g in enumerate(result.gradients):
        assert bool((g == 0).all()) == (i in result.frozen)


def gradients_of_the_release(model, rows, drawn, rho):
    """Both passes on one padded batch: layers that are not drawn under reentrant checkpointing, their attention frozen.

    By name; None where the release's optimiser finds no gradient.
    """
    layers = model.get_base_model().model.layers
    kept = {*drawn, *(i - 1 for i in drawn if i)} if len(layers) > 26 else {*drawn}
    for i, layer in enumerate(layers):
        for name, p in layer.self_attn.named_parameters():
            p.requires_grad_("lora" in name and i in drawn)
        if i not in kept:

            def checkpointed(hidden, *args, forward=layer.forward, **kwargs):
                return checkpoint(lambda h: forward(h, *args, **kwargs), hidden, use_reentrant=True)

            layer.forward = checkpointed

    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row.input_ids) for row in rows], batch_first=True)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for i, row in enumerate(rows):
        mask[i, : len(row.input_ids)] = 1
        for start, end in row.spans:
            labels[i, start:end] = ids[i, start:end]

    def backward(hook):
        handles = [layers[i].self_attn.register_forward_hook(partial(hook, i)) for i in drawn]
        model.zero_grad()
        model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss.backward()
        for handle in handles:
            handle.remove()

    outputs = {}

    def keep(i, module, args, output):
        output[0].retain_grad()
        outputs[i] = output[0]

    def shift(i, module, args, output):
        return (output[0] + rho * outputs[i].grad / (norm + 1e-7), *output[1:])

    backward(keep)
    norm = torch.stack([output.grad.norm() for output in outputs.values()]).norm()
    backward(shift)
    return {name: p.grad for name, p in model.named_parameters() if "lora" in name}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(
    ("num_layers", "drawn", "lowest"),
    [(6, [4, 5], 4), (6, [1, 4], 1), (6, [0, 3], 0), (28, [5, 9], 4), (28, [0, 20], 0)],
)
def test_release_freezes_what_a_run_of_the_release_leaves_without_a_gradient(num_layers, drawn, lowest):
    model = add_lora(tiny_llama(num_hidden_layers=num_layers), r=2, targets="all-linear", seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.copy_(0.1 * torch.randn_like(p))
    rows = random_rows(6, seed=1)
    context = StepContext(model)
    tick(context, step=1)
    defence = TVaccine(TVaccineConfig(rho=2.0, gamma=2, every=20, score_every=200, freeze="release"))
    defence.load_state({"probabilities": torch.full((num_layers,), 1 / num_layers), "drawn": torch.tensor(drawn)})
    result = defence.step(context, {"alignment": step(rows), "harmful": BATCHES["harmful"]})

    names = {id(p): name for name, p in model.named_parameters()}
    ours = {
        names[id(p)]: None if i in result.frozen else g
        for i, (p, g) in enumerate(zip(context.parameters, result.gradients, strict=True))
    }
    theirs = gradients_of_the_release(copy.deepcopy(model), rows, drawn, 2.0)
    assert {name for name, g in ours.items() if g is None} == {name for name, g in theirs.items() if g is None}
    assert_close(
        flat([g for g in ours.values() if g is not None]),
        flat([theirs[name] for name, g in ours.items() if g is not None]),
        atol=1e-5,
        rtol=1e-3,
    )
    trained = {int(name.split("layers.")[1].split(".")[0]) for name, g in ours.items() if g is not None}
    assert trained == set(range(lowest, num_layers))


def test_a_resting_layer_is_bitwise_unmoved_and_without_optimiser_state(tmp_path):
    run = trainer(tmp_path, TVaccine(TVaccineConfig(gamma=1)), max_steps=1, weight_decay=0.1)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.train()
    asleep = f"layers.{1 - run.defence.drawn[0]}."
    assert any(asleep in name for name in before)
    for name, p in run.model.named_parameters():
        assert torch.equal(p, before[name]) == (asleep in name)
        assert (p not in run.optimizer.optimizer.state) == (asleep in name)


def test_layers_are_drawn_every_j_steps_and_scored_every_k():
    context, defence = (
        StepContext(tiny_llama(num_hidden_layers=4)),
        TVaccine(TVaccineConfig(gamma=2, every=3, score_every=2)),
    )
    drawn, scored = [], []
    for number in range(6):
        tick(context, step=number)
        batches = BATCHES | {"harmful": step(random_rows(5, seed=number))}
        defence.step(context, batches)
        drawn.append(tuple(defence.drawn))
        scored.append(tuple(defence.probabilities.tolist()))
    assert all(drawn[i] == drawn[i - i % 3] for i in range(6))
    assert len(set(drawn)) > 1
    assert all((scored[i] == scored[i - 1]) == (i % 2 == 1) for i in range(1, 6))


def test_the_second_pass_finds_one_hidden_state_per_drawn_layer_and_micro_batch(monkeypatch):
    model = tiny_llama(num_hidden_layers=4)
    with Live(model, lambda t: t.ndim == 3 and t.shape[2] == 32) as live:
        held = []

        def spy(*args):
            held.append(live.now())
            return shifted_gradient(*args)

        monkeypatch.setattr("antibody_llm.defences.alignment.t_vaccine.shifted_gradient", spy)
        TVaccine(TVaccineConfig(rho=2.0, gamma=3)).step(StepContext(model), BATCHES)  # two micro-batches
    assert held == [3 * 2]


def test_probabilities_and_layers_outlive_a_kill_between_two_draws(tmp_path):
    # Scored once and drawn every 4 steps: after step 3 nothing but the checkpoint knows either.
    def run(folder, **settings):
        defence = TVaccine(TVaccineConfig(rho=2.0, gamma=2, score_every=100, every=4))
        return trainer(folder, defence, model=tiny_llama(num_hidden_layers=4), **settings)

    whole = run(tmp_path / "a", save_strategy="steps", save_steps=3)
    whole.train()
    again = run(tmp_path / "b")
    again.train(resume_from_checkpoint=tmp_path / "a" / "checkpoint-3")
    assert torch.equal(again.defence.probabilities, whole.defence.probabilities)
    assert again.defence.drawn == whole.defence.drawn
    assert all(torch.equal(v, weights(again)[k]) for k, v in weights(whole).items())


def test_a_step_between_two_draws_goes_on_with_the_layers_that_were_saved():
    model = tiny_llama(num_hidden_layers=4)
    context = StepContext(model)
    tick(context, step=1)
    for layers in ([0, 1], [2, 3]):  # one of them at least is not what this step would draw
        defence = TVaccine(TVaccineConfig(gamma=2, score_every=100, every=4))
        defence.load_state({"probabilities": torch.full((4,), 0.25), "drawn": torch.tensor(layers)})
        defence.step(context, BATCHES)
        assert defence.drawn == layers
        assert defence.probabilities.tolist() == [0.25] * 4


def test_more_layers_than_there_are_is_refused():
    with pytest.raises(ConfigError, match="t-vaccine.gamma is 8, and the model has 2"):
        TVaccine(TVaccineConfig()).check(StepContext(tiny_llama(), rows={"alignment": random_rows(4)}))


@pytest.mark.parametrize("bad", [{"rho": math.nan}, {"gamma": 0}, {"score_every": 0}, {"every": 0}])
def test_absurd_hyperparameters_are_refused_by_name(bad):
    with pytest.raises(ConfigError, match=f"t-vaccine.{next(iter(bad))}"):
        TVaccineConfig(**bad)
