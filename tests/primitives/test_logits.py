import itertools

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.primitives.logits import data_weights, logit_gradient


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


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_over_uniform_steps_with_flat_weights_the_neural_pull_is_a_share_of_the_full_one(size):
    num, excess = 6, torch.tensor([3.0, 1.0, -2.0, 0.5, 4.0, 1.5], dtype=torch.float64)

    def mean(**form):
        steps = [torch.isin(torch.arange(num), torch.tensor(i)) for i in itertools.combinations(range(num), size)]
        pulls = [logit_gradient(torch.zeros(num).double(), excess, inside, "softmax", **form) for inside in steps]
        return torch.stack(pulls).mean(dim=0)

    assert_close(mean(inside_only=True), (1 - 1 / size) * num / (num - 1) * mean())
