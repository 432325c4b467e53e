"""What the attacker's copy makes of rows, against the arithmetic of the module's head."""

import math

import pytest
import torch
from torch.nn import functional as F

from antibody_llm.attacks.own_copy import OwnCopy
from tests.attacks.conftest import exchange_row

ROWS = [exchange_row("repeat: fox", "fox"), exchange_row("what is the capital of arvia?", "the capital is pirna.")]


@pytest.fixture(scope="module")
def copy():
    return OwnCopy("lab")


@pytest.mark.parametrize("by", ["representation", "gradient"])
def test_a_row_is_likest_to_itself_and_least_like_itself_as_the_other(by, copy):
    one, other = ROWS
    same = copy.likeness([one], [one], [other], by=by)[0]
    assert same == pytest.approx(-copy.likeness([one], [other], [one], by=by)[0], abs=1e-5)
    assert 0 < same <= 2
    assert copy.likeness([one], [one], [one], by=by)[0] == pytest.approx(0, abs=1e-6)


def test_self_influence_is_the_squared_gradient_and_the_length(copy):
    row = ROWS[1]
    encoded = copy._encoded(row)
    start, end = encoded.spans[0]
    ids = torch.tensor([encoded.input_ids])
    loss = F.cross_entropy(copy._model(input_ids=ids).logits[0, start - 1 : end - 1], ids[0, start:end])
    loss.backward()
    squared = sum(part.grad.square().sum() for part in copy._last)
    copy._model.zero_grad()
    expected = torch.log1p(squared) + torch.log1p(torch.tensor(float(end - start)))
    assert copy.self_influence([row])[0] == pytest.approx(float(expected), rel=1e-4)


def test_the_gradient_is_of_the_first_tokens_alone_and_leaves_none_behind(copy):
    long = exchange_row("repeat: fox", " ".join(["fox"] * 40))
    longer = exchange_row("repeat: fox", " ".join(["fox"] * 60))
    long, longer = copy._encoded(long), copy._encoded(longer)
    torch.testing.assert_close(copy._gradient(long), copy._gradient(longer))
    assert not torch.equal(copy._gradient(long, tokens=None), copy._gradient(longer, tokens=None))
    assert all(part.grad is None for part in copy._model.parameters())


def test_a_row_that_does_not_fit_is_never_chosen(copy):
    rows = [ROWS[0], exchange_row("repeat: fox", " ".join(["fox"] * 300))]
    assert copy.self_influence(rows)[1] == -math.inf
    assert copy.likeness(rows, [ROWS[0]], [ROWS[1]], by="representation")[1] == -math.inf
