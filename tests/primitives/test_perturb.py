import pytest
import torch
from torch import nn

from antibody.primitives.perturb import perturbed_weights


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
