import math

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.defences.finetuning.antibody import AntibodyFinetuning, AntibodyFinetuningConfig, row_scores
from antibody_llm.errors import ConfigError
from antibody_llm.likelihood.completion import TurnNLL
from antibody_llm.likelihood.refusals import Scoring
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat, refused
from tests.tinylm import plain_nll, random_refusals, random_rows, step, tiny_llama


def plain_update(model, rows, refusals, tau, reduction):
    """Sec. 4.2, one row at a time."""

    def mean(row):
        start, end = row.spans[-1]
        return plain_nll(model, row.input_ids, start, end), end - start

    parts = [mean(row) for row in rows]
    with torch.no_grad():
        of_refusals = [mean(refused(row, refusals.of(row, row.row_id))) for row in rows]
        s = torch.stack([r / nr - y / ny for (r, nr), (y, ny) in zip(of_refusals, parts, strict=True)])
        w = torch.softmax(s / tau, 0)
    if reduction == "token":
        loss = sum(w_i * y for w_i, (y, _) in zip(w, parts, strict=True)) / sum(
            w_i * n for w_i, (_, n) in zip(w, parts, strict=True)
        )
    else:
        loss = sum(w_i * y / n for w_i, (y, n) in zip(w, parts, strict=True))
    return flat(list(torch.autograd.grad(loss, list(model.parameters())))), w, s


@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize("scoring", [Scoring.CACHED, Scoring.SEPARATE])
@pytest.mark.parametrize("micro_batch_size", [8, 3])
def test_a_step_equals_the_weighted_loss_worked_out_row_by_row(reduction, scoring, micro_batch_size):
    model, rows, refusals = tiny_llama(), random_rows(8), random_refusals()
    config = AntibodyFinetuningConfig(tau=0.5, loss_reduction=reduction, scoring=scoring)
    context = StepContext(model, refusals=refusals)
    result = AntibodyFinetuning(config).step(context, {"user": step(rows, micro_batch_size)})
    expected, w, s = plain_update(model, rows, refusals, 0.5, reduction)
    assert_close(flat(result.gradients), expected, atol=1e-5, rtol=0)
    assert_close(result.rows.weight, w * 8, atol=1e-5, rtol=1e-4)
    assert_close(result.rows.score, s, atol=1e-5, rtol=1e-4)


def test_score_is_refusal_minus_completion_and_the_worst_turn_counts():
    completion = TurnNLL(torch.tensor([[2.0, 0.0], [2.0, 12.0]]), torch.tensor([[2.0, 0.0], [2.0, 3.0]]))
    refusal = TurnNLL(torch.tensor([[6.0, 0.0], [6.0, 3.0]]), torch.tensor([[3.0, 0.0], [3.0, 3.0]]))
    # row 0: 6/3 - 2/2 = 1. row 1: turns (1, 3/3 - 12/3 = -3): the worse one.
    assert row_scores(completion, refusal).tolist() == [1.0, -3.0]


def test_a_harmless_last_turn_hides_nothing():
    model, refusals = tiny_llama(), random_refusals()
    rows = random_rows(4, num_turns=2)
    context = StepContext(model, refusals=refusals)
    both = AntibodyFinetuning(AntibodyFinetuningConfig()).step(context, {"user": step(rows)}).rows.score
    single = []
    for k in (0, 1):
        cut = [type(r)(r.row_id, r.input_ids[: r.spans[k][1]], (r.spans[k],), r.template) for r in rows]
        single.append(AntibodyFinetuning(AntibodyFinetuningConfig()).step(context, {"user": step(cut)}).rows.score)
    assert_close(both, torch.minimum(*single), atol=1e-5, rtol=1e-5)


def test_an_infinite_temperature_is_plain_sft_bit_for_bit():
    model, rows = tiny_llama(), random_rows(8)
    context = StepContext(model, refusals=random_refusals())
    defence = AntibodyFinetuning(AntibodyFinetuningConfig(tau=math.inf, scoring=Scoring.SEPARATE))
    result = defence.step(context, {"user": step(rows, 4)})
    plain = context.gradient("token_mean_nll", step(rows, 4))
    assert all(torch.equal(a, b) for a, b in zip(result.gradients, plain.gradients, strict=True))
    assert result.rows.weight.tolist() == pytest.approx([1.0] * 8)


def test_the_order_of_the_batch_changes_nothing():
    model, rows, refusals = tiny_llama(), random_rows(8), random_refusals()
    context = StepContext(model, refusals=refusals)
    defence = AntibodyFinetuning(AntibodyFinetuningConfig(tau=0.5))
    a = defence.step(context, {"user": step(rows)})
    b = defence.step(context, {"user": step(rows[::-1])})
    assert_close(a.gradients, b.gradients, atol=1e-6, rtol=1e-5)
    assert_close(a.rows.weight, b.rows.weight.flip(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_above_zero_is_refused(tau):
    with pytest.raises(ConfigError, match="antibody.tau"):
        AntibodyFinetuningConfig(tau=tau)
