import math

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.primitives.projection import extent, projected

REGIONS = ["box", "l2", "spectral"]


def draw(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator) for shape in ((4, 3), (5,))]


def distance(a, b):
    return math.sqrt(sum(float((x - y).square().sum()) for x, y in zip(a, b, strict=True)))


def test_box_clamps_each_weight():
    out = projected([torch.tensor([0.0, 5.0, -5.0])], [torch.tensor([1.0, 1.0, 1.0])], 2.0, "box")
    assert out[0].tolist() == [0.0, 3.0, -1.0]


def test_l2_is_one_ball_over_all_tensors():
    # |(3, 4)| = 5, to length 1.
    out = projected([torch.tensor([4.0]), torch.tensor([4.0])], [torch.tensor([1.0]), torch.zeros(1)], 1.0, "l2")
    assert_close(torch.cat(out), torch.tensor([1.6, 0.8]))


def test_spectral_cuts_singular_values_and_leaves_smaller_ones():
    move = torch.diag(torch.tensor([3.0, 0.5]))
    out = projected([move + 1], [torch.ones(2, 2)], 2.0, "spectral")
    assert_close(out[0] - 1, torch.diag(torch.tensor([2.0, 0.5])))


@pytest.mark.parametrize("region", REGIONS)
def test_projecting_is_idempotent_ends_within_the_radius_and_never_parts_two_points(region):
    centre = draw(0)
    for seed in range(1, 30):
        a, b = draw(seed, 3.0), draw(seed + 100, 3.0)
        pa, pb = (projected(x, centre, 0.8, region) for x in (a, b))
        assert extent(pa, centre, region) <= 0.8 * (1 + 1e-5)
        assert distance(projected(pa, centre, 0.8, region), pa) < 1e-5
        assert distance(pa, pb) <= distance(a, b) * (1 + 1e-6)


@pytest.mark.parametrize("region", REGIONS)
def test_a_point_inside_stays_bitwise_where_it_is(region):
    centre, near = draw(0), [c + 1e-3 for c in draw(0)]
    for radius in (extent(near, centre, region) * 1.01, math.inf):
        assert all(torch.equal(a, b) for a, b in zip(projected(near, centre, radius, region), near, strict=True))
