"""TOSS against its equation: ranks by hand, and references, scores and update in plain PyTorch."""

import copy

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.defences.finetuning.toss import TOSS, TOSSConfig, kept_tokens
from antibody_llm.errors import ConfigError
from antibody_llm.likelihood.tokens import TokenTable
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat, gradient, token_log_probs
from tests.tinylm import random_rows, step, tiny_llama

ROWS = {
    "user": random_rows(6, seed=1, num_turns=2),
    "harmful": random_rows(5, seed=2),
    "benign": random_rows(4, seed=3),
}
OPTIONS = {"share": 0.4, "num_epochs": 3, "batch_size": 64, "learning_rate": 1e-2}


def begun(model, **options):
    context = StepContext(model, rows=ROWS, batch_size=4)
    defence = TOSS(TOSSConfig(**OPTIONS | options))
    defence.start(context)
    return context, defence


def after_adam(model, rows, num_steps=3):
    """A copy, trained on all rows at once."""
    twin = copy.deepcopy(model)
    optimiser = torch.optim.Adam(twin.parameters(), lr=1e-2)
    for _ in range(num_steps):
        offset, whole = 0, gradient(twin, rows)
        for p in twin.parameters():
            p.grad = whole[offset : offset + p.numel()].view_as(p)
            offset += p.numel()
        optimiser.step()
    return twin


def test_the_highest_scores_of_the_upload_or_of_each_row_are_left_out():
    scores = TokenTable(torch.tensor([5.0, 1.0, 4.0, 0.0, 3.0, 2.0, 9.0, 8.0]), {7: (0, 2), 9: (2, 8)})
    # The upload's quarter are 9 and 8; a quarter of 2 tokens is half of one, rounded up, and of 6 it is 1.5, so 2.
    assert kept_tokens(scores, 0.25, "global").values.tolist() == [1, 1, 1, 1, 1, 1, 0, 0]
    assert kept_tokens(scores, 0.25, "row").values.tolist() == [0, 1, 1, 1, 1, 1, 0, 0]
    assert kept_tokens(scores, 0.0, "row").values.tolist() == [1] * 8


def test_a_score_is_the_nll_of_the_helpful_reference_less_that_of_the_harmful_one():
    model = tiny_llama()
    before = copy.deepcopy(model.state_dict())
    _, defence = begun(model)
    helpful, harmful = (after_adam(model, ROWS[role]) for role in ("benign", "harmful"))
    for row in ROWS["user"]:
        expected = token_log_probs(harmful, row) - token_log_probs(helpful, row)
        assert_close(defence.scores.of(row), expected.detach(), atol=2e-2, rtol=1e-2)  # Adam magnifies rounding
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_step_is_the_mean_over_the_tokens_that_were_kept():
    model = tiny_llama()
    context, defence = begun(model)
    result = defence.step(context, {"user": step(ROWS["user"], 4)})
    nll = torch.cat([-token_log_probs(model, row) for row in ROWS["user"]])
    m = torch.cat([defence.kept.of(row) for row in ROWS["user"]])
    loss = (m * nll).sum() / m.sum()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert_close(flat(result.gradients), expected, atol=1e-6, rtol=1e-4)
    assert m.sum() == len(m) - round(0.4 * len(m))
    assert_close(result.rows.weight, torch.stack([defence.kept.of(row).mean() for row in ROWS["user"]]))


def test_a_step_without_a_token_left_makes_no_update():
    model = tiny_llama()
    context, defence = begun(model)
    defence.kept = defence.kept.with_values(torch.zeros_like(defence.kept.values))
    result = defence.step(context, {"user": step(ROWS["user"], 4)})
    assert result.frozen == frozenset(range(len(context.parameters)))
    assert all(float(g.abs().max()) == 0 for g in result.gradients)


def test_a_further_round_teaches_the_harmful_reference_the_tokens_left_out_and_nothing_else():
    model = tiny_llama()
    _, once = begun(model)
    _, twice = begun(model, rounds=2)
    rise = twice.scores.values - once.scores.values  # nll_u is the same, nll_h fell
    left_out = once.kept.values == 0
    assert rise[left_out].mean() > 5 * rise[~left_out].mean().abs()


@pytest.mark.parametrize(
    ("options", "said"),
    [({"share": 1.0}, "share is 1.0"), ({"rounds": 0}, "rounds is 0"), ({"learning_rate": 0.0}, "lea")],
)
def test_settings_that_select_nothing_sensible_are_refused_by_name(options, said):
    with pytest.raises(ConfigError, match=f"toss.{said}"):
        TOSSConfig(**options)
