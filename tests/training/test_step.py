import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch.testing import assert_close
from transformers import MistralConfig

from antibody_llm.data.records import TokenizedRow
from antibody_llm.likelihood.microbatch import MicroBatch, StepBatch
from antibody_llm.primitives.perturb import perturbed_weights
from antibody_llm.training.step import Clock, RowTerms, StepContext
from tests.likelihood.test_refusals import SMALL, other
from tests.tinylm import micro, plain_nll, random_refusals, random_rows, step, tick, tiny_llama


def plain_gradient(model, rows, weights, reduction="token"):
    """Row by row, by hand: sum w_i NLL_i / sum w_i N_i, or sum w_i NLL_i / N_i / sum w_i."""
    nll = torch.stack([sum(plain_nll(model, row.input_ids, *span) for span in row.spans) for row in rows])
    num_tokens = torch.tensor([float(sum(end - start for start, end in row.spans)) for row in rows])
    loss = (weights * nll).sum() / (weights * num_tokens).sum()
    if reduction == "sequence":
        loss = (weights * nll / num_tokens).sum() / weights.sum()
    return torch.autograd.grad(loss, list(model.parameters())), loss.item()


@pytest.mark.parametrize(("name", "reduction"), [("token_mean_nll", "token"), ("sequence_mean_nll", "sequence")])
def test_a_gradient_is_that_of_the_plain_mean_over_the_step_however_it_is_cut(name, reduction):
    model, rows = tiny_llama(), random_rows(16)
    expected, loss = plain_gradient(model, rows, torch.ones(16), reduction)
    for size in (16, 4, 1, 5):
        sweep = StepContext(model).gradient(name, step(rows, size))
        assert_close(sweep.gradients, list(expected), atol=1e-6, rtol=1e-5)
        assert sweep.loss == pytest.approx(loss, rel=1e-5)


def test_a_token_mean_is_hugging_faces_loss_and_gradient():
    model, rows = tiny_llama(), random_rows(8)
    from antibody_llm.data.collate import pad

    tensors = pad(rows, 0)
    tensors.pop("turns")
    out = model(**tensors)
    expected = torch.autograd.grad(out.loss, list(model.parameters()))
    sweep = StepContext(model).gradient("token_mean_nll", step(rows, 3))
    assert_close(sweep.gradients, list(expected), atol=1e-6, rtol=1e-5)
    assert sweep.loss == pytest.approx(float(out.loss), rel=1e-5)


@pytest.mark.parametrize("spread", [1.0, 200.0])  # with 200, e^200 overflows unless a common maximum is taken out
def test_a_softmax_over_the_step_needs_one_sweep_however_it_is_cut(spread):
    model, rows = tiny_llama(), random_rows(12)
    a = torch.linspace(-1, 1, 12)[torch.randperm(12, generator=torch.Generator().manual_seed(0))] * spread
    expected, _ = plain_gradient(model, rows, torch.softmax(a, 0))
    context = StepContext(model)

    def terms(micro):
        nll = context.completion_nll(micro)
        return RowTerms(nll.row_total, nll.row_tokens, a[[row.row_id for row in micro.rows]])

    for size in (12, 4, 1):
        sweep = context.gradient(terms, step(rows, size))
        assert_close(sweep.gradients, list(expected), atol=1e-6, rtol=1e-4)
        assert_close(sweep.weights, torch.softmax(a, 0), atol=1e-6, rtol=1e-5)


def test_a_constant_added_to_all_scores_changes_nothing():
    model, rows = tiny_llama(), random_rows(6)
    context = StepContext(model)

    def terms(shift):
        def of(micro):
            nll = context.completion_nll(micro)
            return RowTerms(nll.row_total, nll.row_tokens, torch.arange(len(micro.rows)) * 0.5 + shift)

        return of

    assert_close(
        context.gradient(terms(64.0), step(rows)).gradients,
        context.gradient(terms(0.0), step(rows)).gradients,
        atol=0,
        rtol=0,
    )


def sharing(model, rows, size):
    """Sweeps of rows and of their refusals on shared prompts, and what they must be."""
    context = StepContext(model, refusals=random_refusals())
    harmful = step(rows, size)
    refused = context.with_refusals(harmful)
    refusals, completions = context.gradients_on_shared_prompts(refused, harmful)
    plain = [
        plain_gradient(model, [row for row, _ in batch.rows()], torch.ones(len(rows))) for batch in (refused, harmful)
    ]
    return [(refusals, *plain[0]), (completions, *plain[1])]


@pytest.mark.parametrize("num_turns", [1, 2])
@pytest.mark.parametrize("size", [8, 3, 1])
def test_batches_of_the_same_prompts_have_the_gradients_that_each_has_by_itself(size, num_turns):
    for sweep, expected, loss in sharing(tiny_llama(), random_rows(8, num_turns=num_turns), size):
        assert_close(sweep.gradients, list(expected), atol=1e-6, rtol=1e-5)
        assert sweep.loss == pytest.approx(loss, rel=1e-5)


def test_in_bf16_shared_prompts_are_as_far_from_float32_as_separate_ones():
    rows, half = random_rows(8), partial(torch.autocast, "cpu", torch.bfloat16)

    def gradients(autocast, *, shared):
        context = StepContext(tiny_llama(), refusals=random_refusals(), autocast=autocast)
        batches = (context.with_refusals(step(rows, 8)), step(rows, 8))
        if shared:
            sweeps = context.gradients_on_shared_prompts(*batches)
        else:
            sweeps = [context.gradient("token_mean_nll", batch) for batch in batches]
        return [torch.cat([g.flatten() for g in sweep.gradients]) for sweep in sweeps]

    exact = gradients(nullcontext, shared=False)
    off = {
        shared: [float((a - b).norm() / b.norm()) for a, b in zip(gradients(half, shared=shared), exact, strict=True)]
        for shared in (False, True)
    }
    assert min(off[False]) > 1e-3  # bf16 rounds
    assert off[True] == pytest.approx(off[False], rel=0.1)


def one_token_prompts(rows):
    return [
        TokenizedRow(row.row_id, row.input_ids[row.spans[0][0] - 1 :], ((1, 1 + end - start),), row.template)
        for row in rows
        for start, end in row.spans
    ]


@pytest.mark.parametrize("why", ["checkpointing", "a sliding window", "prompts of one token"])
def test_where_prompts_cannot_be_shared_each_batch_has_a_sweep_of_its_own(why, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("prompts were shared")

    monkeypatch.setattr("antibody_llm.training.step.read_prompts", never)
    model, rows = tiny_llama(), random_rows(4)
    if why == "checkpointing":
        model.gradient_checkpointing_enable()
    elif why == "a sliding window":
        model = other(MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=8))
    else:
        rows = one_token_prompts(rows)
    for sweep, expected, _ in sharing(model, rows, 2):
        assert_close(sweep.gradients, list(expected), atol=1e-6, rtol=1e-5)


def test_a_repeated_row_is_not_counted():
    model, rows = tiny_llama(), random_rows(5)
    filled = StepBatch((micro(rows[:4]), MicroBatch((rows[4], rows[0]), (True, False), (4, 0))), 5)
    a, b = (StepContext(model).gradient("token_mean_nll", batch) for batch in (filled, step(rows)))
    assert_close(a.gradients, b.gradients, atol=1e-6, rtol=1e-5)
    assert a.weights.tolist() == pytest.approx([0.2] * 5 + [0.0])


def test_a_gradient_leaves_no_trace_also_when_the_loss_raises():
    model = tiny_llama()
    before = copy.deepcopy(model.state_dict())
    context = StepContext(model)
    context.gradient("token_mean_nll", step(random_rows(4), 2))

    def failing(micro):
        context.completion_nll(micro)
        raise RuntimeError("loss failed")

    with (
        pytest.raises(RuntimeError, match="loss failed"),
        perturbed_weights(context.parameters, [torch.ones_like(p) for p in model.parameters()]),
    ):
        context.gradient(failing, step(random_rows(4)))
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_refusals_of_a_harmful_batch_are_numbered_by_step_and_global_position():
    refusals, rows = random_refusals(5), random_rows(4)
    context = StepContext(tiny_llama(), refusals=refusals)
    tick(context, step=3)
    replaced = context.with_refusals(step(rows, 2))
    for position, (row, _) in enumerate(replaced.rows()):
        start = rows[position].spans[-1][0]
        assert row.input_ids[:start] == rows[position].input_ids[:start]
        assert row.input_ids[start:] == refusals.ids[row.template][(3 * 4 + position) % 5]


@pytest.mark.parametrize("field", ["step", "max_steps", "steps_per_epoch", "learning_rate", "max_grad_norm"])
def test_a_defence_reads_the_clock_and_cannot_set_it(field):
    context = StepContext(tiny_llama(), clock=Clock(**{field: 3}))
    assert getattr(context, field) == 3
    with pytest.raises(AttributeError):
        setattr(context, field, 4)
