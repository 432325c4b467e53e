"""What holds of every defence of the post stage."""

import copy

import pytest
import torch

from antibody_llm.data.roles import Stage
from antibody_llm.defences.catalogue import CATALOGUE, make_repair
from antibody_llm.likelihood.reader import ModelReader
from antibody_llm.models.adapters import add_lora
from tests.defences.cases import ACTIVE
from tests.defences.plain import shifted
from tests.tinylm import tiny_llama
from tests.training.helpers import ROWS

POST = [name for stage, name in CATALOGUE if stage is Stage.POST]
every = pytest.mark.parametrize("name", POST)


def tuned(kind):
    """(fine-tuned, aligned, base): all weights, or an adapter on the aligned model."""
    base = tiny_llama()
    aligned = shifted(copy.deepcopy(base), 0.1, seed=1)
    if kind == "full":
        return shifted(copy.deepcopy(aligned), 0.1, seed=2), aligned, base
    return shifted(add_lora(copy.deepcopy(aligned), r=4, targets=["q_proj", "v_proj"], seed=0), 0.2), aligned, base


def reader_of(name, kind):
    model, aligned, base = tuned("full" if CATALOGUE[Stage.POST, name].merges else kind)
    return ModelReader(model, rows=ROWS, batch_size=4, aligned=aligned, base=base)


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(model, before):
    return all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@every
@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_active_options_change_the_same_weights_twice_and_leave_nothing_else(name, kind):
    reader = reader_of(name, kind)
    model = reader.model.train()
    flags, before = [p.requires_grad for p in model.parameters()], state(model)
    make_repair(name, ACTIVE[Stage.POST, name]).repair(reader, seed=0)
    assert not same(model, before)
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    again = reader_of(name, kind)
    make_repair(name, ACTIVE[Stage.POST, name]).repair(again, seed=0)
    assert same(again.model, state(model))


@every
@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_neutral_options_change_nothing_bit_for_bit(name, kind):
    reader = reader_of(name, kind)
    before = state(reader.model)
    make_repair(name, CATALOGUE[Stage.POST, name].neutral).repair(reader, seed=0)
    assert same(reader.model, before)


@every
def test_the_earlier_models_stay_as_they_are(name):
    model, aligned, base = tuned("full")
    befores = state(aligned), state(base)
    make_repair(name, ACTIVE[Stage.POST, name]).repair(
        ModelReader(model, rows=ROWS, aligned=aligned, base=base), seed=0
    )
    assert same(aligned, befores[0])
    assert same(base, befores[1])
    for other in (aligned, base):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in other.modules())


@every
def test_a_forward_that_fails_leaves_the_weights_as_they_were(name):
    reader = reader_of(name, "full")
    before = state(reader.model)
    num_forwards = 0

    def fail_late(module, args, output):
        nonlocal num_forwards
        num_forwards += 1
        if num_forwards == 3:
            raise RuntimeError("the third forward failed")

    with reader.before_finetuning() as aligned:
        handles = [model.register_forward_hook(fail_late) for model in (reader.model, aligned)]
    try:
        make_repair(name, ACTIVE[Stage.POST, name]).repair(reader, seed=0)
    except RuntimeError:
        assert same(reader.model, before)
    else:
        assert num_forwards == 0  # it reads no rows
    finally:
        for handle in handles:
            handle.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in reader.model.modules())
