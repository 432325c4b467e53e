import pytest
import torch
from torch import nn

from antibody_llm.primitives.perturb import perturbed_weights, replaced_weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_bitwise_the_same_afterwards_and_moved_inside(dtype):
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(1000).to(dtype))
    before = p.detach().clone()
    delta = torch.randn(1000) * 0.1
    for _ in range(20):
        with perturbed_weights([p], [delta]):
            assert not torch.equal(p, before)
    assert torch.equal(p, before)


def test_weights_are_restored_when_the_body_raises():
    p = nn.Parameter(torch.ones(3))
    with pytest.raises(RuntimeError, match="attack"), perturbed_weights([p], [torch.ones(3)]):
        raise RuntimeError("attack")
    assert torch.equal(p, torch.ones(3))
    assert p.grad is None


@pytest.mark.parametrize("raises", [False, True])
def test_replaced_weights_are_bitwise_the_values_inside_and_what_they_were_afterwards(raises):
    p, value = nn.Parameter(torch.tensor([0.1, 0.2])), torch.tensor([1e8, 3e-8])
    inside = []

    def body():
        with replaced_weights([p], [value]):
            inside.append(p.detach().clone())
            if raises:
                raise RuntimeError("attack")

    if raises:
        with pytest.raises(RuntimeError, match="attack"):
            body()
    else:
        body()
    assert torch.equal(inside[0], value)
    assert torch.equal(p, torch.tensor([0.1, 0.2]))
