import copy

import torch
from torch.testing import assert_close

from antibody_llm.training.short_run import short_run
from antibody_llm.training.step import StepContext
from tests.defences.plain import gradient
from tests.tinylm import random_rows, tiny_llama

ROWS = random_rows(5, seed=1)


def run(model, forward=16, **changes):
    context = StepContext(model, batch_size=forward)
    given = {"num_steps": 3, "batch_size": 5, "learning_rate": 1e-2, "name": "test"} | changes
    return short_run(context, ROWS, **given)


def test_it_ends_where_plain_adam_does_and_leaves_the_model_bitwise_as_it_was():
    model = tiny_llama()
    before = copy.deepcopy(model.state_dict())
    found = run(model)
    twin = tiny_llama()
    optimiser = torch.optim.Adam(twin.parameters(), lr=1e-2)
    for _ in range(3):
        offset, whole = 0, gradient(twin, ROWS)  # a step has all five rows
        for p in twin.parameters():
            p.grad = whole[offset : offset + p.numel()].view_as(p)
            offset += p.numel()
        optimiser.step()
    for a, b in zip(found, twin.parameters(), strict=True):
        assert_close(a, b.detach(), atol=2e-4, rtol=1e-3)  # Adam's first steps divide rounding by itself
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_how_a_step_is_cut_into_forward_passes_changes_nothing():
    whole, cut = run(tiny_llama(), num_steps=1), run(tiny_llama(), forward=2, num_steps=1)
    moved = [a - p.detach() for a, p in zip(whole, tiny_llama().parameters(), strict=True)]
    assert all(m.abs().max() > 0 for m in moved)
    for a, b in zip(whole, cut, strict=True):
        assert (a - b).abs().mean() < 1e-5


def test_another_run_of_the_same_seed_sees_its_rows_in_another_order():
    first, second = (run(tiny_llama(), batch_size=2, num_steps=1, name=name) for name in ("a", "b"))
    assert not torch.allclose(first[0], second[0])


def test_it_goes_on_from_the_weights_given():
    model = tiny_llama()
    begun = [p.detach() + 1 for p in model.parameters()]
    found = run(model, num_steps=0, start=begun)
    assert all(torch.equal(a, b) for a, b in zip(found, begun, strict=True))
