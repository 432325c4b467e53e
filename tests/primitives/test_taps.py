import pytest
import torch
from torch import nn
from torch.testing import assert_close

from antibody_llm.primitives.taps import added, captured, captured_inputs


class Pair(nn.Module):
    """Doubles, and gives a tuple as attention modules do."""

    def forward(self, x):
        return 2 * x, "weights"


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Pair(), nn.Linear(2, 2, bias=False)
        self.second.weight.data = torch.tensor([[1.0, 0.0], [0.0, 3.0]])

    def forward(self, x):
        return self.second(self.first(x)[0])


X = torch.tensor([[1.0, 1.0]])


def no_hooks(model):
    return not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_outputs_and_inputs_are_those_of_the_latest_forward():
    model = Stack()
    with captured([model.first, model.second]) as out, captured_inputs([model.first, model.second]) as into:
        model(X)
        model(2 * X)
    assert_close([o.detach() for o in out], [torch.tensor([[4.0, 4.0]]), torch.tensor([[4.0, 12.0]])])
    assert_close(into, [2 * X, torch.tensor([[4.0, 4.0]])])
    assert no_hooks(model)


def test_a_differentiable_capture_gives_the_gradient_by_an_output_that_nothing_trainable_feeds():
    model = Stack()
    with captured([model.first], differentiable=True) as out:
        y = model(X)
    # y = (e_1, 3 e_2), so d(sum y)/de = (1, 3).
    assert_close(torch.autograd.grad(y.sum(), out)[0], torch.tensor([[1.0, 3.0]]))
    assert_close(y.detach(), torch.tensor([[2.0, 6.0]]))


def test_deltas_are_added_and_none_adds_nothing():
    model = Stack()
    with added([model.first, model.second]) as deltas:
        assert_close(model(X).detach(), torch.tensor([[2.0, 6.0]]))
        deltas[0] = torch.tensor([[1.0, 1.0]])  # (3, 3) -> (3, 9)
        deltas[1] = torch.tensor([[0.0, 0.5]])
        assert_close(model(X).detach(), torch.tensor([[3.0, 9.5]]))
    assert_close(model(X).detach(), torch.tensor([[2.0, 6.0]]))
    assert no_hooks(model)


@pytest.mark.parametrize("tap", [captured, captured_inputs, added])
def test_no_hook_remains_when_the_body_raises(tap):
    model = Stack()
    with pytest.raises(RuntimeError, match="body"), tap([model.first]):
        raise RuntimeError("body")
    assert no_hooks(model)
