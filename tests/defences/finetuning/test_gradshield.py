"""GradShield against its equation: scores by hand and in plain PyTorch, both ways; the bisection; the filter."""

import copy

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.data.records import TokenizedRow
from antibody_llm.defences.finetuning.gradshield import (
    GradShield,
    GradShieldConfig,
    Probes,
    difference_scores,
    fewest,
    margin,
)
from antibody_llm.errors import ConfigError, TrainingError
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat, gradient, mean_nll
from tests.tinylm import random_rows, step, tiny_llama

ROWS = {"user": random_rows(8, seed=1), "alignment": random_rows(5, seed=2), "harmful": random_rows(6, seed=4)}
OPTIONS = {"num_steps": 3, "batch_size": 8, "learning_rate": 1e-2, "tolerance": 100.0}


def begun(model, rows=ROWS, **options):
    context = StepContext(model, rows=rows, batch_size=4)
    defence = GradShield(GradShieldConfig(**OPTIONS | options))
    defence.start(context)
    return context, defence


def plain_margin(model, rows=ROWS):
    """Mean NLL per token of a harmful completion minus that of a refusal."""
    harmful, refusing = (
        sum(mean_nll(model, [row]) for row in rows[r]) / len(rows[r]) for r in ("harmful", "alignment")
    )
    return harmful - refusing


def plain_scores(model, rows=ROWS):
    """<grad l_i, grad S>, row by row."""
    parameters = list(model.parameters())
    safety = torch.cat([g.flatten() for g in torch.autograd.grad(plain_margin(model, rows), parameters)])
    return torch.stack([gradient(model, [row]) @ safety for row in rows["user"]])


def scores_of(defence):
    return torch.tensor([score for _, score in defence.rows.values()])


def kept_of(defence):
    return [row_id for row_id, (m, _) in defence.rows.items() if m]


def test_the_difference_of_a_quadratic_is_its_directional_derivative_by_hand():
    w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    # l_1 = |w|^2 / 2 and l_2 = 3 w_1 with grad S = (3, 4): <(1, 2), (3, 4)> = 11 and <(3, 0), (3, 4)> = 9.
    losses = lambda: torch.stack([w.detach().square().sum() / 2, 3 * w.detach()[0]])  # noqa: E731
    found = difference_scores([w], losses, [torch.tensor([3.0, 4.0])], epsilon=0.1)
    assert_close(found, torch.tensor([11.0, 9.0]).double(), atol=1e-4, rtol=0)
    assert w.tolist() == [1.0, 2.0]
    assert difference_scores([w], losses, [torch.zeros(2)], epsilon=0.1).tolist() == [0.0, 0.0]


def test_both_ways_give_the_scores_of_plain_pytorch():
    model = tiny_llama()
    expected = plain_scores(model)
    exact, near = (scores_of(begun(model, score=score)[1]) for score in ("exact", "difference"))
    assert_close(exact, expected, atol=1e-5, rtol=1e-4)
    assert float((near - expected).abs().max()) < 1e-2 * float(expected.abs().max())


def test_the_margin_is_the_mean_over_harmful_rows_minus_the_mean_over_refusals():
    model = tiny_llama()
    found = margin(StepContext(model, batch_size=4), Probes(ROWS["harmful"], ROWS["alignment"]))
    assert found == pytest.approx(plain_margin(model).item(), rel=1e-5)


@pytest.mark.parametrize("least", range(9))
def test_the_bisection_finds_the_fewest_that_pass(least):
    tried = []
    found = fewest(lambda k: tried.append(k) or k >= least, most=8)
    assert found == least
    assert len(tried) <= 5


def test_if_nothing_passes_there_is_no_number():
    assert fewest(lambda k: False, most=8) is None
    assert fewest(lambda k: False, most=0) is None


def same(row, row_id):
    return TokenizedRow(row_id, row.input_ids, row.spans, row.template)


def test_a_row_that_is_a_harmful_completion_is_left_out_and_a_refusal_is_kept():
    upload = [same(row, i) for i, row in enumerate([*ROWS["alignment"][:2], *ROWS["harmful"]])]
    _, defence = begun(tiny_llama(), ROWS | {"user": upload}, tolerance=0.0)
    scores = scores_of(defence)
    assert scores[:2].max() < 0
    left_out = set(defence.rows) - set(kept_of(defence))
    assert left_out
    assert left_out <= set(scores.argsort().tolist()[-len(left_out) :]) - {0, 1}


def test_the_run_stops_if_every_cut_that_is_tried_costs_too_much(monkeypatch):
    monkeypatch.setattr(GradShield, "_after_trial", lambda *_: -100.0)
    with pytest.raises(TrainingError, match=r"more than 0 nats per token even without the \d of 8 rows"):
        begun(tiny_llama(), tolerance=0.0)


def test_leaving_out_the_whole_upload_is_no_cut():
    upload = [same(row, i) for i, row in enumerate(ROWS["harmful"][:1])]
    with pytest.raises(TrainingError, match="even without the 1 of 1 rows"):
        begun(tiny_llama(), ROWS | {"user": upload}, tolerance=0.0)


def test_with_every_fall_tolerated_nothing_is_left_out():
    assert kept_of(begun(tiny_llama())[1]) == list(range(8))


def test_a_step_is_the_token_mean_over_the_rows_kept_and_none_where_none_is():
    model = tiny_llama()
    context, defence = begun(model)
    defence.rows = {i: (float(i % 2), 0.0) for i in range(8)}
    result = defence.step(context, {"user": step(ROWS["user"], 3)})
    kept = ROWS["user"][1::2]
    assert_close(flat(result.gradients), gradient(model, kept), atol=1e-6, rtol=1e-4)
    assert result.loss == pytest.approx(mean_nll(model, kept).item(), rel=1e-5)
    assert result.rows.weight.tolist() == [0, 1] * 4
    nothing = defence.step(context, {"user": step(ROWS["user"][::2], 3)})
    assert nothing.frozen == frozenset(range(len(context.parameters)))


def test_scoring_and_trials_leave_the_weights_bitwise():
    model = tiny_llama()
    before = copy.deepcopy(model.state_dict())
    begun(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", ["epsilon", "learning_rate", "num_steps", "num_probes"])
def test_settings_out_of_range_are_refused_by_name(name):
    with pytest.raises(ConfigError, match=f"gradshield.{name} is 0"):
        GradShieldConfig(**{name: 0})
