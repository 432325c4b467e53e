import pytest
import torch
from torch.testing import assert_close

from antibody_llm.primitives.discriminant import Moments, fisher

LABELS = torch.tensor([0] * 40 + [1] * 20)


def vectors():
    drawn = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    drawn[40:] += torch.tensor([2.0, 0, 0, 1, 0])
    return drawn


def test_the_direction_solves_the_shrunk_covariance_within_labels():
    x = vectors().double()
    means = [x[label == LABELS].mean(dim=0) for label in (0, 1)]
    apart = torch.cat([x[label == LABELS] - means[label] for label in (0, 1)])
    pooled = apart.T @ apart / 58
    shrunk = 0.8 * pooled + 0.2 * pooled.diagonal().mean() * torch.eye(5, dtype=torch.float64)
    expected = torch.linalg.inv(shrunk) @ (means[1] - means[0])
    expected = expected / (expected @ (means[1] - means[0]))
    direction, offset = fisher([Moments.of(vectors(), LABELS)], shrinkage=0.2)
    assert_close(direction, expected, rtol=1e-4, atol=1e-5)
    assert offset == pytest.approx(float(means[0] @ expected), abs=1e-4)


def test_vectors_may_come_in_any_parts():
    x, whole = vectors(), fisher([Moments.of(vectors(), LABELS)], shrinkage=0.1)
    grown = Moments.of(x[:7], LABELS[:7])
    grown.add(x[7:50], LABELS[7:50])
    parts = fisher([grown, Moments.of(x[50:], LABELS[50:])], shrinkage=0.1)
    assert_close(parts[0], whole[0], rtol=1e-4, atol=1e-6)
    assert parts[1] == pytest.approx(whole[1], abs=1e-5)


def test_fewer_vectors_than_dimensions_have_a_direction():
    direction, _ = fisher([Moments.of(vectors()[37:43], LABELS[37:43])], shrinkage=0.05)
    assert bool(torch.isfinite(direction).all())
