"""Buffer and reinforce against its equations, with an adapter and without, in plain PyTorch."""

import copy

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.defences.finetuning.buffer_and_reinforce import BufferAndReinforce, BufferAndReinforceConfig
from antibody_llm.errors import ConfigError
from antibody_llm.models.adapters import add_lora
from antibody_llm.models.lora_factors import lora_factors
from antibody_llm.training.short_run import short_run
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat, gradient, shifted
from tests.tinylm import random_rows, step, tiny_llama

ROWS = {"user": random_rows(6, seed=1), "harmful": random_rows(5, seed=2), "alignment": random_rows(4, seed=3)}
OPTIONS = {"num_buffer_steps": 5, "num_reinforce_steps": 4, "batch_size": 8, "learning_rate": 1e-2, "rank": 3}


def adapted(moved=True):
    model = add_lora(tiny_llama(), r=4, alpha=8, targets=["q_proj", "v_proj"], seed=0)
    return shifted(model, 0.05) if moved else model  # moved: an adapter that holds an alignment already


def begun(model, **options):
    context = StepContext(model, rows=ROWS, batch_size=8)
    defence = BufferAndReinforce(BufferAndReinforceConfig(**OPTIONS | options))
    defence.start(context)
    return context, defence


def changes(weights, begun):
    """scaling (B A - B_0 A_0) of each layer; weights alternate A and B, and scaling is 8 / 4."""
    pairs = [(w[0::2], w[1::2]) for w in (weights, begun)]
    return [2 * (b @ a - b0 @ a0) for a, b, a0, b0 in zip(*pairs[0], *pairs[1], strict=True)]


def matrices(model):
    """The whole matrix of each layer with an adapter."""
    return [(of.layer.base_layer.weight + of.scaling * of.b @ of.a).detach() for of in lora_factors(model)]


@pytest.mark.parametrize("moved", [True, False])
def test_a_step_with_an_adapter_is_plain_sfts_on_a_model_that_has_the_buffer_in_its_own_weights(moved):
    model = adapted(moved)
    context, defence = begun(model)
    twin = copy.deepcopy(model)
    buffer = changes(defence.buffer, defence.begun)
    for of, change in zip(lora_factors(twin), buffer, strict=True):
        of.layer.base_layer.weight.data += change
    result = defence.step(context, {"user": step(ROWS["user"], 4)})
    assert_close(flat(result.gradients), gradient(twin, ROWS["user"]), atol=1e-5, rtol=1e-3)
    assert max(float(change.abs().max()) for change in buffer) > 1e-2


def test_a_step_without_an_adapter_is_plain_sfts_at_the_weights_after_the_harmful_run():
    model = tiny_llama()
    context, defence = begun(model)
    twin = copy.deepcopy(model)
    expected = short_run(
        StepContext(twin, batch_size=8), ROWS["harmful"], num_steps=5, batch_size=5, learning_rate=1e-2,
        name="buffer-and-reinforce.harmful",
    )  # fmt: skip
    for p, w in zip(twin.parameters(), expected, strict=True):
        p.data.copy_(w)
    result = defence.step(context, {"user": step(ROWS["user"], 4)})
    assert_close(flat(result.gradients), gradient(twin, ROWS["user"]), atol=1e-5, rtol=1e-3)


def test_harmful_rows_have_less_gradient_under_the_buffer_than_without_it():
    model = tiny_llama()
    context, defence = begun(model, num_buffer_steps=40)
    buffered = flat(defence.step(context, {"user": step(ROWS["harmful"])}).gradients).norm()
    assert buffered < 0.2 * gradient(model, ROWS["harmful"]).norm()


@pytest.mark.parametrize("moved", [True, False])
def test_with_an_adapter_the_merge_adds_what_lies_outside_the_columns_of_the_users_change(moved):
    model = adapted(moved)
    before = matrices(model)
    context, defence = begun(model)
    shifted(model, 0.03, seed=6)  # the user's run
    trained = matrices(model)
    defence.finish(context)
    for merged, w, w0, reinforced in zip(
        matrices(model), trained, before, changes(defence.reinforced, defence.begun), strict=True
    ):
        # Without an alignment in the adapter the user's change has rank 4, with one at most 8.
        q = torch.linalg.svd(w - w0).U[:, : 8 if moved else 4]
        assert_close(merged, w + reinforced - q @ (q.T @ reinforced), atol=2e-5, rtol=1e-3)
        assert (merged - w).norm() > 1e-3


def test_without_an_adapter_the_strongest_directions_of_the_users_change_are_left_alone():
    model = tiny_llama()
    begun_at = [p.detach().clone() for p in model.parameters()]
    context, defence = begun(model)
    shifted(model, 0.03)
    trained = [p.detach().clone() for p in model.parameters()]
    defence.finish(context)
    for p, w, w0, r in zip(model.parameters(), trained, begun_at, defence.reinforced, strict=True):
        matrix = lambda t: t.reshape(t.shape[0], -1)  # noqa: E731
        q = torch.linalg.svd(matrix(w - w0), full_matrices=False).U[:, :3]
        added = matrix(r - w0)
        assert_close(matrix(p.detach()), matrix(w) + added - q @ (q.T @ added), atol=1e-5, rtol=1e-3)


def test_what_reinforces_is_trained_under_the_buffer():
    _, defence = begun(adapted())
    _, bare = begun(adapted(), num_buffer_steps=0)
    assert bare.buffer == []
    assert not torch.allclose(flat(defence.reinforced), flat(bare.reinforced))


@pytest.mark.parametrize(("name", "value"), [("num_buffer_steps", -1), ("rank", 0), ("learning_rate", 0.0)])
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"buffer-and-reinforce.{name} is {value}"):
        BufferAndReinforceConfig(**{name: value})
