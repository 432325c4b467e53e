import torch

from antibody_llm.primitives.noise import add_noise


def draw(**changed) -> torch.Tensor:
    w = torch.zeros(4000)
    add_noise([w], 0.5, **({"seed": 1, "step": 2, "name": "a"} | changed))
    return w


def test_noise_is_a_function_of_seed_step_and_name_alone():
    torch.manual_seed(0)
    first = draw()
    torch.manual_seed(1)
    assert torch.equal(first, draw())
    for changed in ({"seed": 3}, {"step": 3}, {"name": "b"}):
        assert not torch.equal(first, draw(**changed))


def test_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    draw()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_noise_has_the_standard_deviation_asked_for_and_zero_leaves_the_bits():
    assert abs(draw().std() - 0.5) < 0.03
    w = torch.tensor([-0.0, 1.0])
    add_noise([w], 0.0, seed=0, step=0, name="a")
    assert torch.equal(w.view(torch.int32), torch.tensor([-0.0, 1.0]).view(torch.int32))
