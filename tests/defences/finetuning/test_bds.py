"""Bayesian data scheduler against its equations: arithmetic by hand, and the update row by row in plain PyTorch."""

import pytest
import torch
from torch.testing import assert_close

from antibody.defences.finetuning.bds import BDS, BDSConfig, data_weights, logit_gradient
from antibody.errors import ConfigError
from antibody.training.step import StepContext
from tests.defences.plain import flat
from tests.tinylm import plain_nll, random_rows, step, tiny_llama

USER, SAFE, UNSEEN = random_rows(12, seed=1), random_rows(8, seed=2), random_rows(40, seed=5)


def begun(model=None, learning_rate=0.0, rows=USER, **options):
    context = StepContext(model or tiny_llama(), rows={"user": rows, "alignment": SAFE})
    context.learning_rate = learning_rate
    defence = BDS(BDSConfig(**{"temperature": 0.0, "normaliser": False} | options))
    defence.start(context)
    return context, defence


def batches(rows=USER, size=4):
    return {"user": step(rows, size), "alignment": step(SAFE, 3)}


def row_means(model, rows):
    return torch.stack([plain_nll(model, r.input_ids, *r.spans[0]) / (r.spans[0][1] - r.spans[0][0]) for r in rows])


def gradient_of(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def test_softmax_weights_add_to_the_number_of_rows_and_sigmoid_ones_begin_at_one():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    assert_close(data_weights(logits, "softmax").sum(), torch.tensor(4.0))
    assert data_weights(torch.zeros(3), "softmax").tolist() == [1.0, 1.0, 1.0]
    assert data_weights(torch.zeros(3), "sigmoid").tolist() == [1.0, 1.0, 1.0]


def test_logit_gradient_by_hand():
    # N = 4, all weights 1, I = {0, 1}, D = (3, 1): the sum of s D over I is 4.
    # softmax: row 0: (3 - 4/4) / 2 = 1; row 1: (1 - 1) / 2 = 0; others: (0 - 1) / 2.
    inside = torch.tensor([True, True, False, False])
    excess = torch.tensor([3.0, 1.0, 9.0, 9.0])
    assert_close(logit_gradient(torch.zeros(4), excess, inside, "softmax"), torch.tensor([1.0, 0.0, -0.5, -0.5]))
    # sigmoid: 2 sigma'(0) = 1/2, so D / 4 inside and 0 outside.
    assert_close(logit_gradient(torch.zeros(4), excess, inside, "sigmoid"), torch.tensor([0.75, 0.25, 0.0, 0.0]))


@pytest.mark.parametrize("transform", ["softmax", "sigmoid"])
def test_logit_gradient_is_autograds_and_adds_to_zero_for_softmax(transform):
    torch.manual_seed(0)
    logits, excess, inside = torch.randn(9, requires_grad=True), torch.randn(9), torch.arange(9) % 2 == 0
    mean = (data_weights(logits, transform) * excess)[inside].mean()
    ours = logit_gradient(logits.detach(), excess, inside, transform)
    assert_close(ours, torch.autograd.grad(mean, logits)[0])
    if transform == "softmax":
        assert abs(float(ours.sum())) < 1e-6


def test_in_the_neural_form_the_average_is_that_of_the_step_and_the_others_are_left_alone():
    # I = {0, 1} of 4, weights 1, D = (3, 1), average 2: (1, -1) / 2.
    inside = torch.tensor([True, True, False, False])
    pull = logit_gradient(torch.zeros(4), torch.tensor([3.0, 1.0, 9.0, 9.0]), inside, "softmax", inside_only=True)
    assert_close(pull, torch.tensor([0.5, -0.5, 0.0, 0.0]))


@pytest.mark.parametrize("num", [6, 60])
def test_under_constant_losses_descent_parts_two_clusters_around_one_whatever_the_number_of_rows(num):
    losses = torch.where(torch.arange(num) % 3 == 0, 2.0, 1.0)
    logits = torch.zeros(num)
    for _ in range(10):
        logits -= 0.1 * num * logit_gradient(logits, losses, torch.ones(num, dtype=torch.bool), "softmax")
    weights = data_weights(logits, "softmax")
    assert weights[losses == 2].max() < 1 < weights[losses == 1].min()


def test_the_update_is_the_safety_mean_plus_the_weighted_user_mean_eq2():
    model = tiny_llama()
    context, defence = begun(model)
    defence.logits = torch.linspace(-1, 1, 12)
    result = defence.step(context, batches())
    weights = torch.softmax(torch.linspace(-1, 1, 12), 0) * 12
    loss = row_means(model, SAFE).mean() + (weights * row_means(model, USER)).mean()
    assert_close(flat(result.gradients), gradient_of(loss, model), atol=1e-5, rtol=1e-4)
    assert_close(result.loss, loss.item())
    assert_close(result.rows.weight, weights)


def test_with_flat_weights_that_do_not_move_it_is_both_means_unweighted():
    model = tiny_llama()
    context, defence = begun(model, scheduler_lr=0.0)
    for _ in range(2):
        result = defence.step(context, batches())
    loss = row_means(model, SAFE).mean() + row_means(model, USER).mean()
    assert_close(flat(result.gradients), gradient_of(loss, model), atol=1e-5, rtol=1e-4)
    assert result.rows.weight.tolist() == [1.0] * 12


def test_logits_take_adams_step_on_the_losses_before_the_update_eq3():
    model = tiny_llama()
    context, defence = begun(model, scheduler_lr=0.1)
    defence.step(context, batches(USER[:6]))
    losses = row_means(model, USER[:6]).detach()
    pull = torch.cat([losses, torch.zeros(6)]) / 6 - losses.sum() / 6 / 12
    # Adam's first step is the learning rate times the sign.
    assert_close(defence.logits, -0.1 * pull.sign(), atol=1e-5, rtol=0)


def test_the_normaliser_pulls_at_the_losses_in_excess_of_the_agnostic_models_eq3():
    model, other = tiny_llama(), tiny_llama(seed=4)
    context, defence = begun(model, normaliser=True, scheduler_lr=0.1, transform="sigmoid")
    defence.agnostic = [p.detach().clone() for p in other.parameters()]
    defence.step(context, batches())
    excess = (row_means(model, USER) - row_means(other, USER)).detach()
    assert_close(defence.logits, -0.1 * excess.sign(), atol=1e-4, rtol=0)


def test_the_agnostic_weights_descend_on_the_weighted_upload_alone_eq4():
    model = tiny_llama()
    context, defence = begun(model, learning_rate=0.01, normaliser=True)
    before = flat(defence.agnostic).clone()
    defence.step(context, batches())
    g = gradient_of(row_means(model, USER).mean(), model)
    clear = g.abs() > 1e-4  # where rounding cannot turn a sign
    assert_close((flat(defence.agnostic) - before)[clear], -0.01 * g.sign()[clear], atol=1e-5, rtol=0)
    # Nothing has become harder yet: w' was w.
    assert defence.logits.tolist() == [0.0] * 12


def test_noise_on_the_model_has_the_variance_of_twice_the_rate_over_the_rows():
    model = tiny_llama()
    context, defence = begun(model, learning_rate=0.06, temperature=2.0)
    before = flat([p.detach() for p in model.parameters()]).clone()
    defence.after_update(context)
    moved = flat([p.detach() for p in model.parameters()]) - before
    assert_close(float(moved.std()), (2 * 0.06 * 2 / 12) ** 0.5, rtol=0.02, atol=0)


def test_the_scorer_moves_as_autograd_says_through_its_table():
    model = tiny_llama()
    context, defence = begun(model, scheduler="neural", scheduler_lr=0.1)
    before = [phi.clone() for phi in defence.phi]
    defence.step(context, batches(USER[:6]))
    assert any(not torch.equal(a, b) for a, b in zip(before, defence.phi, strict=True))  # the release's never moves
    # z = w2 . h with w2 = 0: dL/dw2 = sum over the step's rows of dL/dz_i h_i, and Adam steps by its sign.
    phi = [p.clone().requires_grad_() for p in before]
    losses = row_means(model, USER[:6]).detach()
    z = torch.cat([defence._scores(phi, USER[:6]), torch.zeros(6)])
    above = torch.cat([losses - losses.mean(), torch.zeros(6)])  # all weights are 1
    mean = (torch.softmax(z, 0) * 12 * above)[:6].mean()
    expected = torch.autograd.grad(mean, phi[3])[0]
    assert_close(defence.phi[3], -0.1 * expected.sign(), atol=1e-4, rtol=0)


def parted(num, seed):
    """Rows of two kinds that differ in their completions' tokens: 10 to 14 in even rows, 40 to 44 in odd ones."""
    rows = []
    for i, row in enumerate(random_rows(num, seed=seed)):
        start, end = row.spans[0]
        completion = tuple(10 + token % 5 + 30 * (i % 2) for token in row.input_ids[start:end])
        rows.append(type(row)(row.row_id, (*row.input_ids[:start], *completion), row.spans, row.template))
    return rows


def test_the_neural_form_ranks_unseen_rows_as_the_losses_of_seen_ones_taught_it():
    model, rows, unseen = tiny_llama(), parted(12, 1), parted(40, 9)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(15):  # a model that knows even rows, to which odd ones are hard
        optimizer.zero_grad()
        row_means(model, rows[::2]).mean().backward()
        optimizer.step()
    context, defence = begun(model, rows=rows, scheduler="neural", scheduler_lr=0.02)
    for i in range(30):
        context.step = i
        defence.step(context, batches(rows))
    scores = defence.score_rows(context, unseen)
    auroc = (scores[::2, None] > scores[None, 1::2]).float().mean()
    assert auroc >= 0.95
    weights = defence.data_weights()
    assert min(weights[i] for i in range(0, 12, 2)) > 1 > max(weights[i] for i in range(1, 12, 2))


def test_a_scalar_scheduler_cannot_score_unseen_rows():
    context, defence = begun()
    with pytest.raises(ConfigError, match="scheduler=neural"):
        defence.score_rows(context, UNSEEN)


@pytest.mark.parametrize("field", ["scheduler_lr", "temperature"])
def test_a_negative_number_is_refused_by_name(field):
    with pytest.raises(ConfigError, match=f"bds.{field} is -1"):
        BDSConfig(**{field: -1.0})
