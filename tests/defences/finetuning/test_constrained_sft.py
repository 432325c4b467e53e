"""Constrained SFT against its equation: arithmetic by hand, and the update row by row in plain PyTorch."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from antibody_llm.data.records import Template, TokenizedRow
from antibody_llm.defences.finetuning.constrained_sft import (
    ConstrainedSFT,
    ConstrainedSFTConfig,
    strengths,
    token_weights,
)
from antibody_llm.errors import ConfigError
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat, gradient, shifted, token_log_probs
from tests.tinylm import random_rows, step, tiny_llama

USER = random_rows(6, seed=1, num_turns=2)
CONFIG = ConstrainedSFTConfig(beta=0.5)


def begun(model, config=CONFIG):
    context = StepContext(model, rows={"user": USER}, batch_size=4)
    defence = ConstrainedSFT(config)
    defence.start(context)
    return context, defence


def test_a_token_e_times_likelier_has_the_weight_of_the_logistic_curve_and_none_is_below_the_floor():
    # 2 (1 - sigmoid(b x)) = 2 / (1 + e^(b x)): b = 1, x = log 3 gives 2 / 4; x = -log 3 gives 2 / (1 + 1/3) = 1.5.
    x = torch.tensor([0.0, math.log(3), -math.log(3), 50.0])
    assert_close(token_weights(x, torch.ones(4)), torch.tensor([1.0, 0.5, 1.5, 1e-3]))


def test_each_answer_of_a_row_has_its_own_first_and_opening_tokens():
    row = TokenizedRow(0, tuple(range(20)), ((3, 10), (12, 14)), Template.TEXT)
    found = strengths(row, ConstrainedSFTConfig(beta=0.1))
    assert_close(found, torch.tensor([0.5, 2, 2, 2, 2, 0.1, 0.1, 0.5, 2]))


def test_the_first_update_is_plain_sfts():
    model = tiny_llama()
    context, defence = begun(model)
    result = defence.step(context, {"user": step(USER, 4)})
    assert_close(flat(result.gradients), gradient(model, USER), atol=1e-6, rtol=1e-5)
    assert_close(result.rows.weight, torch.ones(6))


def test_after_a_shift_the_update_is_autograds_of_the_papers_softplus_objective():
    """sum_t (2 / b_t) softplus(b_t (log p^0 - log p)), an objective that this library never writes down."""
    model = tiny_llama()
    before = copy.deepcopy(model)
    context, defence = begun(model)
    shifted(model, 0.004)  # no weight reaches the floor
    result = defence.step(context, {"user": step(USER, 4)})
    objective, weights = 0.0, []
    for row in USER:
        b = strengths(row, CONFIG)
        ratio = token_log_probs(before, row).detach() - token_log_probs(model, row)
        objective = objective + (2 / b * F.softplus(b * ratio)).sum()
        weights.append((2 * torch.sigmoid(b * ratio)).mean().item())
    loss = objective / sum(end - start for row in USER for start, end in row.spans)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert_close(flat(result.gradients), expected, atol=2e-6, rtol=1e-4)
    assert result.rows.weight.tolist() == pytest.approx(weights, rel=1e-4)


def test_a_negative_strength_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"constrained-sft.beta is -1"):
        ConstrainedSFTConfig(beta=-1.0)
