import torch
from torch.testing import assert_close

from antibody_llm.primitives.subspace import column_space, outside


def test_the_basis_is_orthonormal_and_holds_every_column_of_a_matrix_of_lower_rank():
    matrix = torch.randn(7, 2) @ torch.randn(2, 5)
    basis = column_space(torch.cat([matrix, torch.zeros(7, 3)], dim=1))
    assert basis.shape == (7, 2)
    assert_close(basis.T @ basis, torch.eye(2), atol=1e-5, rtol=0)
    assert_close(outside(matrix, basis), torch.zeros(7, 5), atol=1e-5, rtol=0)


def test_with_a_rank_the_strongest_directions_are_taken():
    basis = column_space(torch.diag(torch.tensor([1.0, 5.0, 3.0])), rank=2)
    assert_close(basis.abs(), torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))


def test_what_is_outside_is_what_is_left_of_the_coordinates():
    basis = torch.tensor([[1.0], [0.0], [0.0]])
    assert outside(torch.tensor([[2.0], [3.0], [4.0]]), basis).tolist() == [[0.0], [3.0], [4.0]]


def test_a_zero_matrix_spans_nothing():
    basis = column_space(torch.zeros(3, 2))
    assert basis.shape == (3, 0)
    assert outside(torch.ones(3, 1), basis).tolist() == [[1.0]] * 3
