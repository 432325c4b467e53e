import math

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.primitives.density import density, interpolated, kernel_width, log_density


@pytest.mark.parametrize(
    "scores", [torch.randn(50).double(), torch.tensor([0.0] * 9 + [1.0]).double(), torch.ones(4).double()]
)
def test_a_density_integrates_to_one(scores):
    where = torch.linspace(-20, 20, 20_001, dtype=torch.float64)
    assert float(torch.trapezoid(density(scores, where), where)) == pytest.approx(1.0, abs=1e-3)


def test_a_density_is_the_mean_of_its_kernels():
    found = log_density(torch.tensor([0.0, 1.0]).double(), torch.tensor([0.5]).double(), 0.5)
    kernel = math.exp(-0.5) / (0.5 * math.sqrt(2 * math.pi))  # both are one width away
    assert_close(found.exp(), torch.tensor([kernel]).double())


def test_the_width_is_silvermans():
    scores = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]).double()
    # deviation 1.58, interquartile range 2: 0.9 min(1.58, 2 / 1.34) 5^(-1/5)
    assert kernel_width(scores) == pytest.approx(0.9 * (2 / 1.34) * 5**-0.2)


def test_between_points_of_a_grid_a_value_is_a_weighted_mean_and_at_its_ends_theirs():
    grid = torch.tensor([0.0, 2.0, 4.0])
    values = torch.tensor([[1.0, 3.0, 3.0], [0.0, 0.0, 8.0]])
    found = interpolated(grid, values, torch.tensor([0.0, 1.5, 3.0, 4.0]))
    assert_close(found, torch.tensor([[1.0, 2.5, 3.0, 3.0], [0.0, 0.0, 4.0, 8.0]]))
