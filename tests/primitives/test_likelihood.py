import math

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.errors import DataError
from antibody_llm.primitives.likelihood import sequence_nll, token_nll


def test_sequence_nll_sums_the_completion_tokens_alone():
    # Two tokens in the vocabulary; logits (0, log 3) give the probabilities 1/4 and 3/4 everywhere.
    logits = torch.tensor([0.0, math.log(3.0)]).expand(2, 4, 2)
    labels = torch.tensor([[-100, -100, 1, 0], [-100, 1, 1, -100]])
    total, num_tokens = sequence_nll(logits, labels)
    assert_close(total, torch.tensor([-math.log(3 / 4) - math.log(1 / 4), -2 * math.log(3 / 4)]))
    assert num_tokens.tolist() == [2, 2]


def test_a_row_without_completion_raises_and_is_named():
    with pytest.raises(DataError, match="row 1"):
        sequence_nll(torch.zeros(2, 3, 2), torch.tensor([[-100, 1, 1], [-100, -100, -100]]))


def test_token_nll_is_zero_and_without_gradient_off_the_targets():
    logits = torch.randn(1, 3, 4, requires_grad=True)
    nll = token_nll(logits, torch.tensor([[-100, 2, -100]]))
    assert nll[0, 0] == 0
    assert nll[0, 2] == 0
    nll.sum().backward()
    assert (logits.grad[0, [0, 2]] == 0).all()
    assert (logits.grad[0, 1] != 0).any()
