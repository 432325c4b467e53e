import copy
import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from antibody_llm.defences.alignment.tar import (
    TAR,
    TARConfig,
    hidden_distance,
    margins,
    preference_loss,
    shuffled,
    split_rows,
    step_weight,
)
from antibody_llm.errors import ConfigError, DataError
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat, gradient, mean_nll, refused
from tests.tinylm import micro, plain_nll, random_refusals, random_rows, step, tick, tiny_llama

ALIGNMENT, HARMFUL = random_rows(5, seed=1), random_rows(8, seed=2)
REFUSALS = random_refusals()


def prepared(model, **options):
    """A defence after ``start``, the model then moved on, as after some training."""
    context = StepContext(model, rows={"alignment": ALIGNMENT, "harmful": HARMFUL}, refusals=REFUSALS, seed=4)
    defence = TAR(TARConfig(**options))
    defence.start(context)
    reference = copy.deepcopy(model)
    torch.manual_seed(9)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.02 * torch.randn_like(p)
    tick(context, step=2)
    return defence, context, reference


def batches(micro_batch_size=None):
    return {"alignment": step(ALIGNMENT, micro_batch_size), "harmful": step(HARMFUL[:4], micro_batch_size)}


def margin(model, row):
    no = refused(row, REFUSALS.ids[row.template][row.row_id % len(REFUSALS)])
    return plain_nll(model, row.input_ids, *row.spans[-1]) - plain_nll(model, no.input_ids, *no.spans[0])


def preference(model, reference, rows, beta):
    losses = [-F.logsigmoid(beta * (margin(model, r) - margin(reference, r).detach())) for r in rows]
    return sum(losses) / len(losses)


def test_weights_and_preferences_by_hand():
    assert step_weight(3, 4, 0.5) == 1.0
    assert step_weight(1, 4, 0.5) == pytest.approx(math.exp(-1.0))
    loss = preference_loss(torch.tensor([3.0, 13.0]), torch.tensor([3.0, 3.0]), 0.1)
    assert_close(loss, torch.tensor([math.log(2.0), math.log(1 + math.exp(-1.0))]))


def test_of_several_turns_the_refusal_is_compared_with_the_last_completion_alone():
    model = tiny_llama()
    rows = [*random_rows(3, seed=5, num_turns=2), *random_rows(2, seed=6)]  # the one forward pass holds both kinds
    found = margins(StepContext(model, refusals=REFUSALS), micro(rows))
    assert_close(found, torch.stack([margin(model, row) for row in rows]), atol=1e-4, rtol=1e-4)


def test_hidden_distance_counts_real_tokens_alone_and_averages_layers():
    now = [torch.zeros(2, 2, 2), torch.zeros(2, 2, 2)]
    before = [torch.tensor([[[3.0, 4.0], [1.0, 0.0]], [[0.0, 2.0], [9.0, 9.0]]]), torch.zeros(2, 2, 2)]
    assert_close(hidden_distance(now, before, [2, 1], "squared"), torch.tensor([13.0, 2.0]))
    assert_close(hidden_distance(now, before, [2, 1], "norm"), torch.tensor([3.0, 1.0]))


def test_no_attacker_sees_a_held_out_row():
    attack, held_out = split_rows(10, 0.25, seed=3)
    assert sorted(attack + held_out) == list(range(10))
    assert len(held_out) == 2
    assert split_rows(2, 0.9, seed=0)[0]
    with pytest.raises(DataError, match="tar splits the harmful rows"):
        split_rows(1, 0.25, seed=0)


@pytest.mark.parametrize(("penalty", "micro_batch_size"), [("squared", None), ("squared", 2), ("norm", None)])
def test_a_step_equals_the_attack_replayed_on_copies(penalty, micro_batch_size):
    model = tiny_llama()
    options = {"inner_steps": 3, "every": 2, "lam_tr": 0.7, "lam_retain": 0.9, "lam_hidden": 0.3, "lam_schedule": 0.5}
    defence, context, reference = prepared(model, inner_learning_rates=(1e-2, 2e-2), penalty=penalty, **options)
    result = defence.step(context, batches(micro_batch_size))

    # The attack, on a copy, with torch's own AdamW; T once, after the second of three steps.
    attack, held_out = split_rows(8, 0.25, 4)
    generator = torch.Generator().manual_seed(4 * 1_000_003 + 2)
    rate = (1e-2, 2e-2)[int(torch.randint(2, (), generator=generator))]
    attack_rows = [HARMFUL[i] for i in shuffled(attack, generator)]
    held_out_rows = [HARMFUL[i] for i in shuffled(held_out, generator)]
    twin = copy.deepcopy(model)
    optimiser = torch.optim.AdamW(twin.parameters(), lr=rate)
    for k in range(2):
        optimiser.zero_grad()
        mean_nll(twin, [attack_rows[(4 * k + i) % 6] for i in range(4)]).backward()
        optimiser.step()
    optimiser.zero_grad()
    t = preference(twin, reference, [held_out_rows[i % 2] for i in range(4)], 0.1)
    attacked = flat(torch.autograd.grad(t, list(twin.parameters())))

    distance, num_tokens = 0.0, 0
    for row in ALIGNMENT:
        states = []
        for m in (model, reference):
            seen = []
            handles = [
                layer.register_forward_hook(lambda m, a, output, seen=seen: seen.append(output))
                for layer in m.model.layers
            ]
            m(input_ids=torch.tensor([row.input_ids]))
            for handle in handles:
                handle.remove()
            states.append([s[0] if isinstance(s, tuple) else s for s in seen])
        changes = [(a - b.detach())[0] for a, b in zip(*states, strict=True)]
        lengths = [c.square().sum(-1) if penalty == "squared" else c.norm(dim=-1) for c in changes]
        distance = distance + sum(length.sum() for length in lengths) / len(lengths)
        num_tokens += len(row.input_ids)
    retain = mean_nll(model, ALIGNMENT) + 0.3 * distance / num_tokens
    expected = 0.9 * flat(torch.autograd.grad(retain, list(model.parameters())))
    expected = expected + 0.7 * math.exp(-0.5) * attacked
    assert_close(flat(result.gradients), expected, atol=2e-4, rtol=1e-3)
    assert result.metrics["loss_attacked"] == pytest.approx(float(t.detach()), rel=1e-4)


def distance_of_the_release(model, reference, rows):
    """Its objective's second term on one padded batch."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row.input_ids) for row in rows], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row.input_ids)) for row in rows], batch_first=True)
    with torch.no_grad():
        before = reference(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    now = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    return torch.stack([torch.norm(b - a, dim=-1).mean() for b, a in zip(before, now, strict=True)]).mean()


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_the_distance_of_the_release_is_a_mean_over_its_states_and_the_padding_of_each_forward_pass(micro_batch_size):
    model = tiny_llama()
    options = {"inner_steps": 1, "every": 1, "lam_tr": 0.0, "lam_retain": 0.9, "lam_hidden": 0.3}
    defence, context, reference = prepared(model, penalty="release", **options)
    result = defence.step(context, batches(micro_batch_size))

    size = micro_batch_size or len(ALIGNMENT)
    passes = [ALIGNMENT[start : start + size] for start in range(0, len(ALIGNMENT), size)]
    assert len({len(row.input_ids) for row in passes[0]}) > 1  # there is padding
    distance = sum(distance_of_the_release(model, reference, rows) for rows in passes) / len(passes)
    retain = mean_nll(model, ALIGNMENT) + 0.3 * distance
    expected = 0.9 * flat(torch.autograd.grad(retain, list(model.parameters())))
    assert_close(flat(result.gradients), expected, atol=1e-5, rtol=1e-4)
    assert result.loss == pytest.approx(float(retain.detach()), rel=1e-5)


def test_without_resistance_and_distance_it_is_plain_sft_bit_for_bit_and_the_weights_are_too():
    model = tiny_llama()
    defence, context, _ = prepared(model, lam_tr=0.0, lam_hidden=0.0, inner_steps=1, every=1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = defence.step(context, batches())
    plain = context.gradient("token_mean_nll", step(ALIGNMENT))
    assert torch.equal(flat(result.gradients), flat(plain.gradients))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert_close(flat(plain.gradients), gradient(model, ALIGNMENT), atol=1e-5, rtol=0)


@pytest.mark.parametrize("penalty", ["norm", "release"])
def test_at_the_start_nothing_is_preferred_and_nothing_has_moved(penalty):
    model = tiny_llama()
    context = StepContext(model, rows={"alignment": ALIGNMENT, "harmful": HARMFUL}, refusals=REFUSALS)
    defence = TAR(TARConfig(inner_steps=1, every=1, inner_learning_rates=(1e-9,), penalty=penalty))
    defence.start(context)
    result = defence.step(context, batches())
    assert result.metrics["loss_attacked"] == pytest.approx(math.log(2.0), abs=1e-4)
    assert all(torch.isfinite(g).all() for g in result.gradients)


@pytest.mark.parametrize(
    "bad",
    [
        {"inner_steps": 0},
        {"every": 0},
        {"every": 65},
        {"lam_tr": -1.0},
        {"lam_hidden": math.nan},
        {"inner_learning_rates": ()},
        {"inner_learning_rates": (0.0,)},
        {"held_out": 1.0},
    ],
)
def test_absurd_hyperparameters_are_refused_by_name(bad):
    with pytest.raises(ConfigError, match=f"tar.{next(iter(bad))}"):
        TARConfig(**bad)
