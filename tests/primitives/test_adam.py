import torch
from torch.testing import assert_close

from antibody_llm.primitives.adam import Adam


def test_the_first_step_is_lr_times_the_sign_of_the_gradient():
    # m / (1 - b1) = g and v / (1 - b2) = g^2, so the step is lr * g / |g|.
    w = torch.tensor([1.0, 1.0])
    Adam().update([w], [torch.tensor([0.5, -2.0])], lr=0.1)
    assert_close(w, torch.tensor([0.9, 1.1]))


def test_ten_steps_equal_torch_optim_also_across_a_checkpoint():
    torch.manual_seed(0)
    ours, theirs = torch.randn(7), torch.nn.Parameter(torch.zeros(7))
    theirs.data.copy_(ours)
    reference = torch.optim.Adam([theirs], lr=0.05, betas=(0.9, 0.95))
    adam = Adam((0.9, 0.95))
    for i in range(10):
        if i == 5:
            state = adam.state("a")
            adam = Adam((0.9, 0.95))
            adam.load_state(state, "a")
        g = torch.randn(7)
        adam.update([ours], [g], lr=0.05)
        theirs.grad = g
        reference.step()
    assert_close(ours, theirs.detach())
