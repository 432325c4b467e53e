import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from antibody_llm.models.adapters import add_lora
from antibody_llm.training.lens import lens_mean_nll, lens_nll
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat
from tests.tinylm import random_rows, step, tiny_llama


def plain_lens(model, rows):
    """A, row by row from ``output_hidden_states``; the last of these is normed already."""
    total, tokens = 0.0, 0
    for row in rows:
        start, end = row.spans[0]
        hidden = model(input_ids=torch.tensor([row.input_ids]), output_hidden_states=True).hidden_states
        states = [model.model.norm(h) for h in hidden[:-1]] + [hidden[-1]]
        target = torch.tensor(row.input_ids[start:end])
        each = [F.cross_entropy(model.lm_head(h[0, start - 1 : end - 1]), target, reduction="sum") for h in states]
        total, tokens = total + sum(each) / len(each), tokens + end - start
    return total / tokens


@pytest.mark.parametrize("micro_batch_size", [5, 2])
def test_the_lens_loss_and_its_gradient_are_those_row_by_row(micro_batch_size):
    model, rows = tiny_llama(), random_rows(5, seed=1)
    context = StepContext(model)
    sweep = context.gradient(lambda micro: lens_mean_nll(context, micro), step(rows, micro_batch_size))
    expected = plain_lens(model, rows)
    assert sweep.loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert_close(
        flat(sweep.gradients), flat(torch.autograd.grad(expected, list(model.parameters()))), atol=1e-5, rtol=0
    )


def test_each_row_gets_its_own_completion_tokens():
    # The head reads one of two tokens off the state itself: logits (h, 0).
    head = nn.Linear(1, 2, bias=False)
    head.weight.data = torch.tensor([[1.0], [0.0]])
    norm = nn.LayerNorm(1, elementwise_affine=True)
    norm.forward = lambda x: x
    hidden, labels = torch.zeros(2, 4, 1), torch.tensor([[-100, 0, -100, -100], [-100, -100, 1, 0]])
    # log 2 for each token: one in the first row, two in the second.
    assert_close(lens_nll(hidden, labels, norm, head), torch.tensor([1.0, 2.0]) * torch.tensor(2.0).log())


def test_the_lens_works_under_an_adapter():
    model = add_lora(tiny_llama(), r=2, seed=0)
    context = StepContext(model)
    sweep = context.gradient(lambda micro: lens_mean_nll(context, micro), step(random_rows(3)))
    assert float(flat(sweep.gradients).norm()) > 0
