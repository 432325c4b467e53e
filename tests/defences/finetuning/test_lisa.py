import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from antibody_llm.defences.finetuning.lisa import Lisa, LisaConfig, aligning, lisa_update, tethered
from antibody_llm.errors import ConfigError
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat, gradient, mean_nll
from tests.tinylm import random_rows, step, tick, ticks, tiny_llama

USER, ALIGNMENT = random_rows(6, seed=1), random_rows(6, seed=2)


def _batches(micro_batch_size=None):
    return {"user": step(USER, micro_batch_size), "alignment": step(ALIGNMENT, micro_batch_size)}


def _run(defence, context, num_steps, lr=0.1):
    """Plain gradient descent; the update of every step as one long vector, and the weights it was taken at."""
    tick(context, max_steps=num_steps)
    defence.start(context)
    taken = []
    for _ in ticks(context, num_steps):
        at = flat([p.detach().clone() for p in context.parameters])
        result = defence.step(context, _batches(2))
        taken.append((at, flat(result.gradients), result))
        with torch.no_grad():
            for p, g in zip(context.parameters, result.gradients, strict=True):
                p -= lr * g
    return taken


def test_update_is_worked_out_by_hand_on_two_weights():
    w, anchor = nn.Parameter(torch.tensor([3.0, 1.0])), [torch.tensor([1.0, 2.0])]
    update = lisa_update([w], anchor, gradient=lambda: [torch.tensor([0.5, 0.5])], rho=2.0)
    # (0.5, 0.5) + 2 ((3, 1) - (1, 2)) = (4.5, -1.5)
    assert_close(update[0], torch.tensor([4.5, -1.5]))


def test_states_of_two_and_three_steps_alternate_from_the_alignment_state():
    trace = ["UA"[aligning(t, num_alignment_steps=2, num_user_steps=3)] for t in range(12)]
    assert "".join(trace) == "AAUUUAAUUUAA"


def test_the_anchor_changes_exactly_where_the_state_does_and_the_pull_is_zero_there():
    defence, context = Lisa(LisaConfig(num_alignment_steps=2, num_user_steps=3)), StepContext(tiny_llama())
    taken = _run(defence, context, 12)
    proximal = [result.metrics["proximal"] for _, _, result in taken]
    assert [t for t, value in enumerate(proximal) if value == 0.0] == [0, 2, 5, 7, 10]  # 0: the weights at the start
    assert all(value > 0 for t, value in enumerate(proximal) if t not in (0, 2, 5, 7, 10))


def test_every_update_is_a_plain_gradient_and_the_pull_to_where_the_other_state_ended():
    rho, defence = 0.7, Lisa(LisaConfig(num_alignment_steps=2, num_user_steps=1, rho=0.7))
    taken = _run(defence, StepContext(tiny_llama()), 5)  # A A U A A
    ended = {0: 0, 1: 0, 2: 2, 3: 3, 4: 3}  # step: whose starting weights are the anchor
    twin = tiny_llama()
    for t, (at, update, _) in enumerate(taken):
        torch.nn.utils.vector_to_parameters(at, twin.parameters())
        plain = gradient(twin, USER if t == 2 else ALIGNMENT)
        assert_close(update, plain + rho * (at - taken[ended[t]][0]), atol=1e-5, rtol=0)


def test_without_alternation_the_tether_stays_at_the_start():
    taken = _run(Lisa(LisaConfig(num_alignment_steps=0, rho=0.5)), StepContext(tiny_llama()), 3)
    twin = tiny_llama()
    torch.nn.utils.vector_to_parameters(taken[2][0], twin.parameters())
    assert_close(taken[2][1], gradient(twin, USER) + 0.5 * (taken[2][0] - taken[0][0]), atol=1e-5, rtol=0)


def test_a_warm_start_leaves_the_tether_off_up_to_and_at_its_share_of_the_steps():
    config = LisaConfig(num_alignment_steps=3, num_user_steps=1, warm_start=0.5)
    taken = _run(Lisa(config), StepContext(tiny_llama()), 4)
    assert ["proximal" in result.metrics for _, _, result in taken] == [False, False, False, True]


def test_a_warm_start_of_a_tenth_is_off_at_the_very_steps_at_which_the_release_has_it_off():
    for num_batches, num_epochs in ((10, 2), (63, 20), (7, 3), (5, 1)):
        release = [steps > 0.1 * num_batches * num_epochs for steps in range(num_batches * num_epochs)]
        assert [tethered(t, num_batches * num_epochs, 0.1) for t in range(num_batches * num_epochs)] == release


def test_without_a_warm_start_the_tether_holds_from_the_first_step():
    assert tethered(0, 10, 0.0)


def test_every_update_of_a_warm_started_run_is_that_of_the_release():
    # The release's loop, with its clock, its two snapshots and its penalty by autograd; 0.1 T = 2 is whole.
    k1, k2, rho, num_steps = 3, 2, 0.7, 20
    config = LisaConfig(num_alignment_steps=k1, num_user_steps=k2, rho=rho, warm_start=0.1)
    taken = _run(Lisa(config), StepContext(tiny_llama()), num_steps)

    model = tiny_llama()
    params = list(model.parameters())
    snapshot = {state: [p.detach().clone() for p in params] for state in ("alignment", "finetune")}
    status, clock = "alignment", 0
    for steps in range(num_steps):
        if steps != 0 and clock % (k1 if status == "alignment" else k2) == 0:
            snapshot[status] = [p.detach().clone() for p in params]
            status, clock = {"alignment": "finetune", "finetune": "alignment"}[status], 0
        other = snapshot["finetune" if status == "alignment" else "alignment"]
        loss = mean_nll(model, ALIGNMENT if status == "alignment" else USER)
        if steps > 0.1 * num_steps:
            loss = loss + sum(rho / 2 * torch.norm(p - w) ** 2 for p, w in zip(params, other, strict=True))
        g = torch.autograd.grad(loss, params)
        assert_close(taken[steps][1], flat(g), atol=2e-5, rtol=1e-4)
        with torch.no_grad():
            for p, step_g in zip(params, g, strict=True):
                p -= 0.1 * step_g
        clock += 1


def test_user_rows_of_an_alignment_step_are_recorded_with_weight_zero():
    taken = _run(Lisa(LisaConfig(num_alignment_steps=1, num_user_steps=1)), StepContext(tiny_llama()), 2)
    assert [result.rows.weight.tolist() for _, _, result in taken] == [[0.0] * 6, [1.0] * 6]


def test_the_anchor_survives_a_checkpoint_and_is_no_reference_to_the_weights():
    defence, context = Lisa(LisaConfig(num_alignment_steps=3)), StepContext(tiny_llama())
    taken = _run(defence, context, 2)
    twin = Lisa(LisaConfig(num_alignment_steps=3))
    twin.load_state(defence.state())
    tick(context, step=2)
    ours, theirs = (d.step(context, _batches()).gradients for d in (defence, twin))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(flat(defence._anchor), taken[0][0])


@pytest.mark.parametrize(
    "bad",
    [{"rho": -1.0}, {"rho": math.nan}, {"num_user_steps": -1}, {"warm_start": 1.5}, {"num_alignment_steps": -2}],
)
def test_absurd_hyperparameters_are_refused_by_name(bad):
    with pytest.raises(ConfigError, match=f"lisa.{next(iter(bad))}"):
        LisaConfig(**bad)


def test_two_empty_states_are_refused():
    with pytest.raises(ConfigError, match="both 0"):
        LisaConfig(num_alignment_steps=0, num_user_steps=0)
