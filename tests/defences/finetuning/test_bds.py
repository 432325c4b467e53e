"""Bayesian data scheduler against its equations: arithmetic by hand, and the update row by row in plain PyTorch."""

import logging
import weakref

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.defences.finetuning.bds import BDS, BDSConfig, parts_of
from antibody_llm.errors import ConfigError
from antibody_llm.primitives.bag_scorer import bag_scores
from antibody_llm.primitives.logits import data_weights, logit_gradient
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat
from tests.tinylm import plain_nll, random_rows, step, tick, tiny_llama
from tests.training.helpers import trainer, weights

USER, SAFE, UNSEEN = random_rows(12, seed=1), random_rows(8, seed=2), random_rows(40, seed=5)


def begun(model=None, learning_rate=0.0, rows=USER, **options):
    context = StepContext(model or tiny_llama(), rows={"user": rows, "alignment": SAFE})
    tick(context, learning_rate=learning_rate)
    defence = BDS(BDSConfig(**{"temperature": 0.0, "normaliser": False} | options))
    defence.start(context)
    return context, defence


def batches(rows=USER, size=4):
    return {"user": step(rows, size), "alignment": step(SAFE, 3)}


def row_means(model, rows):
    return torch.stack([plain_nll(model, r.input_ids, *r.spans[0]) / (r.spans[0][1] - r.spans[0][0]) for r in rows])


def gradient_of(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


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
    defence.schedule.logits = torch.linspace(-1, 1, 12)
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
    assert_close(defence.schedule.logits, -0.1 * pull.sign(), atol=1e-5, rtol=0)


def test_the_normaliser_pulls_at_the_losses_in_excess_of_the_agnostic_models_eq3():
    model, other = tiny_llama(), tiny_llama(seed=4)
    context, defence = begun(model, normaliser=True, scheduler_lr=0.1, transform="sigmoid")
    defence.agnostic = [p.detach().clone() for p in other.parameters()]
    defence.step(context, batches())
    excess = (row_means(model, USER) - row_means(other, USER)).detach()
    assert_close(defence.schedule.logits, -0.1 * excess.sign(), atol=1e-4, rtol=0)


def test_the_agnostic_weights_descend_on_the_weighted_upload_alone_eq4():
    model = tiny_llama()
    context, defence = begun(model, learning_rate=0.01, normaliser=True)
    before = flat(defence.agnostic).clone()
    defence.step(context, batches())
    g = gradient_of(row_means(model, USER).mean(), model)
    clear = g.abs() > 1e-4  # where rounding cannot turn a sign
    assert_close((flat(defence.agnostic) - before)[clear], -0.01 * g.sign()[clear], atol=1e-5, rtol=0)
    # Nothing has become harder yet: w' was w.
    assert defence.schedule.logits.tolist() == [0.0] * 12


@pytest.mark.parametrize(
    ("what", "options", "num", "rate"),
    [
        ("logits", {}, 3000, 0.3),
        ("phi", {"scheduler": "neural"}, 12, 0.3),
        ("agnostic", {"normaliser": True}, 12, 0.06),
    ],
)
def test_noise_on_schedule_and_agnostic_weights_has_twice_their_own_rate_over_the_rows(what, options, num, rate):
    rows = (UNSEEN * (num // 40 + 1))[:num]
    rows = [type(row)(i, row.input_ids, row.spans, row.template) for i, row in enumerate(rows)]
    ends = []
    for temperature in (0.0, 2.0):  # Adam's first step is the same in both
        context, defence = begun(rows=rows, learning_rate=0.06, scheduler_lr=0.3, temperature=temperature, **options)
        defence.step(context, batches(rows[:4]))
        of = getattr(defence if what == "agnostic" else defence.schedule, what)
        ends.append(flat([of] if isinstance(of, torch.Tensor) else of))
    noise = ends[1] - ends[0]
    assert_close(float(noise.std()), (2 * rate * 2 / num) ** 0.5, rtol=0.04, atol=0)
    assert abs(float(noise.mean())) < 4 * float(noise.std()) / len(noise) ** 0.5


def test_one_gradient_besides_its_own_is_kept_while_the_agnostic_weights_are_swept():
    context, defence = begun(normaliser=True)
    plain, made, left = context.gradient, [], []

    def gradient(loss, batch):
        left.append(sum(of() is not None for of in made))
        sweep = plain(loss, batch)
        made.append(weakref.ref(sweep.gradients[0]))
        return sweep

    context.gradient = gradient
    defence.step(context, batches())
    assert left == [0, 1, 1]  # of the safety rows, the user rows, the agnostic weights


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
    before = [phi.clone() for phi in defence.schedule.phi]
    defence.step(context, batches(USER[:6]))
    assert any(
        not torch.equal(a, b) for a, b in zip(before, defence.schedule.phi, strict=True)
    )  # the release's never moves
    # z = w2 . h with w2 = 0: dL/dw2 = sum over the step's rows of dL/dz_i h_i, and Adam steps by its sign.
    phi = [p.clone().requires_grad_() for p in before]
    losses = row_means(model, USER[:6]).detach()
    z = torch.cat([bag_scores(phi, *parts_of(USER[:6])), torch.zeros(6)])
    above = torch.cat([losses - losses.mean(), torch.zeros(6)])  # all weights are 1
    mean = (torch.softmax(z, 0) * 12 * above)[:6].mean()
    expected = torch.autograd.grad(mean, phi[3])[0]
    assert_close(defence.schedule.phi[3], -0.1 * expected.sign(), atol=1e-4, rtol=0)


def test_under_sigmoid_the_scorer_moves_as_autograd_says_and_weights_begin_at_one():
    model, other = tiny_llama(), tiny_llama(seed=4)
    context, defence = begun(model, normaliser=True, scheduler="neural", transform="sigmoid", scheduler_lr=0.1)
    defence.agnostic = [p.detach().clone() for p in other.parameters()]
    before = [phi.clone() for phi in defence.schedule.phi]
    result = defence.step(context, batches(USER[:6]))
    assert result.rows.weight.tolist() == [1.0] * 6
    # dL/dw2 of  mean_I 2 sigma(z_i) (l_i(w) - l_i(w')),  z = w2 . h.
    phi = [p.clone().requires_grad_() for p in before]
    excess = (row_means(model, USER[:6]) - row_means(other, USER[:6])).detach()
    loss = (2 * torch.sigmoid(bag_scores(phi, *parts_of(USER[:6]))) * excess).mean()
    expected = torch.autograd.grad(loss, phi[3])[0]
    clear = expected.abs() > 1e-6  # where rounding cannot turn a sign
    assert clear.sum() > 20
    assert_close((defence.schedule.phi[3] - before[3])[clear], -0.1 * expected.sign()[clear], atol=1e-4, rtol=0)


def test_when_training_ends_the_table_holds_the_scores_of_every_row_visited_or_not():
    context, defence = begun(scheduler="neural", scheduler_lr=0.1)
    for i in range(2):
        tick(context, step=i)
        defence.step(context, batches(USER[:6]))
    assert defence.schedule.logits[6:].tolist() == [0.0] * 6  # never visited, so never scored
    defence.finish(context)
    prompts = [row.input_ids[: row.spans[0][0]] for row in USER]
    completions = [row.input_ids[slice(*row.spans[0])] for row in USER]
    expected = bag_scores(defence.schedule.phi, prompts, completions)
    assert expected.abs().min() > 0
    assert_close(defence.schedule.logits, expected)
    assert_close(
        torch.tensor(list(defence.data_weights().values())), (torch.softmax(expected.double(), 0) * 12).float()
    )


@pytest.mark.parametrize("transform", ["softmax", "sigmoid"])
def test_a_resumed_neural_run_ends_bitwise_the_same(tmp_path, transform):
    def made():
        return BDS(BDSConfig(scheduler="neural", transform=transform, scheduler_lr=0.1, temperature=0.01))

    whole = trainer(tmp_path / "a", made(), max_grad_norm=0.0, save_strategy="steps", save_steps=1)
    whole.train()
    again = trainer(tmp_path / "b", made(), max_grad_norm=0.0)
    again.train(resume_from_checkpoint=tmp_path / "a" / "checkpoint-4")
    assert all(torch.equal(v, weights(again)[k]) for k, v in weights(whole).items())
    assert str(again.row_log.columns()) == str(whole.row_log.columns())
    a, b = whole.defence.state(), again.defence.state()
    assert a.keys() == b.keys()
    assert all(torch.equal(v, b[k]) for k, v in a.items())
    assert a["phi.3"].abs().max() > 0


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
        tick(context, step=i)
        defence.step(context, batches(rows))
    scores = defence.score_rows(unseen)
    auroc = (scores[::2, None] > scores[None, 1::2]).float().mean()
    assert auroc >= 0.95
    weights = defence.data_weights()
    assert min(weights[i] for i in range(0, 12, 2)) > 1 > max(weights[i] for i in range(1, 12, 2))


def test_a_scalar_scheduler_cannot_score_unseen_rows():
    _, defence = begun()
    with pytest.raises(ConfigError, match="scheduler=neural"):
        defence.score_rows(UNSEEN)


@pytest.mark.parametrize("field", ["scheduler_lr", "temperature"])
def test_a_negative_number_is_refused_by_name(field):
    with pytest.raises(ConfigError, match=f"bds.{field} is -1"):
        BDSConfig(**{field: -1.0})


def test_clipping_beside_the_normaliser_is_warned_of_and_nothing_else_is(tmp_path, caplog):
    def warned(clip, **options):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="antibody"):
            trainer(tmp_path, BDS(BDSConfig(**options)), max_steps=1, max_grad_norm=clip).train()
        return [r.getMessage() for r in caplog.records if "bds" in r.getMessage()]

    (said,) = warned(1.0)
    assert "training={'max_grad_norm': 0}" in said
    assert not warned(0.0)
    assert not warned(1.0, normaliser=False)


def test_a_scorer_that_would_see_one_row_a_step_is_refused(tmp_path):
    def run(size=1, **options):
        defence = BDS(BDSConfig(**{"scheduler": "neural"} | options))
        trainer(tmp_path, defence, per_device_train_batch_size=size, max_steps=1, max_grad_norm=0.0).train()

    with pytest.raises(ConfigError, match="one row.*Raise batch_size, or use options={'scheduler': 'scalar'}"):
        run()
    for fine in ({"size": 2}, {"scheduler": "scalar"}, {"transform": "sigmoid"}):
        run(**fine)
