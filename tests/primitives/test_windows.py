import torch
from torch.testing import assert_close

from antibody_llm.primitives.windows import smoothed


def test_each_place_has_the_mean_of_its_neighbours_that_there_are():
    values = torch.tensor([1.0, 2.0, 6.0, 7.0])
    assert_close(smoothed(values, 1), torch.tensor([1.5, 3.0, 5.0, 6.5]))
    assert_close(smoothed(values, 9), torch.full((4,), 4.0))
    assert torch.equal(smoothed(values, 0), values)


def test_vectors_are_averaged_number_by_number():
    values = torch.tensor([[0.0, 3.0], [2.0, 3.0]])
    assert_close(smoothed(values, 1), torch.tensor([[1.0, 3.0], [1.0, 3.0]]))
