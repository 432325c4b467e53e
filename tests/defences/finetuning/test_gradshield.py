"""GradShield against its equation: scores by hand and in plain PyTorch, both ways; the bisection; the filter."""

import copy

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.data.records import TokenizedRow
from antibody_llm.defences.finetuning.gradshield import GradShield, GradShieldConfig, difference_scores, fewest
from antibody_llm.errors import ConfigError
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat, gradient, mean_nll
from tests.tinylm import random_rows, step, tiny_llama

ROWS = {"user": random_rows(8, seed=1), "alignment": random_rows(5, seed=2)}
OPTIONS = {"num_steps": 3, "batch_size": 8, "learning_rate": 1e-2, "tolerance": 0.0}


def begun(model, rows=ROWS, **options):
    context = StepContext(model, rows=rows, batch_size=4)
    defence = GradShield(GradShieldConfig(**OPTIONS | options))
    defence.start(context)
    return context, defence


def plain_scores(model, rows=ROWS):
    """<grad l_i, grad S> with S minus the mean over refusals of the mean NLL, row by row."""
    safety = -sum(gradient(model, [row]) for row in rows["alignment"]) / len(rows["alignment"])
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


@pytest.mark.parametrize("least", range(9))
def test_the_bisection_finds_the_fewest_that_pass(least):
    tried = []
    found = fewest(lambda k: tried.append(k) or k >= least, most=8)
    assert found == (least, True)
    assert len(tried) <= 5


def test_if_nothing_passes_the_most_are_returned_and_said_not_to():
    assert fewest(lambda k: False, most=8) == (8, False)
    assert fewest(lambda k: False, most=0) == (0, False)


def test_a_row_that_unteaches_a_refusal_is_left_out_and_one_that_teaches_it_is_kept():
    refusals = ROWS["alignment"]
    others = random_rows(3, seed=8, longest=6)

    def answered(row, row_id, other):  # the prompt of a refusal, with another answer
        start, _ = row.spans[0]
        ids = (*row.input_ids[:start], *other.input_ids)
        return TokenizedRow(row_id, ids, ((start, len(ids)),), row.template)

    teaching = [TokenizedRow(i, row.input_ids, row.spans, row.template) for i, row in enumerate(refusals[:3])]
    upload = [
        *teaching,
        *(answered(row, 3 + i, other) for i, (row, other) in enumerate(zip(refusals[:3], others, strict=True))),
    ]
    _, defence = begun(tiny_llama(), {"user": upload, "alignment": refusals})
    scores = scores_of(defence)
    assert scores[:3].max() < 0
    assert set(kept_of(defence)) >= {0, 1, 2}


def test_with_every_fall_tolerated_nothing_is_left_out():
    assert kept_of(begun(tiny_llama(), tolerance=100.0)[1]) == list(range(8))


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
