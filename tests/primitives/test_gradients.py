import torch
from torch.testing import assert_close

from antibody_llm.primitives.gradients import combined, difference, dot, norm, scaled, unit

A = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
B = [torch.tensor([1.0, 1.0]), torch.tensor([[2.0]])]


def test_norm_and_product_run_over_all_tensors_together():
    assert norm(A).item() == 5.0
    assert dot(A, B).item() == 3.0 + 8.0


def test_unit_has_length_one_and_leaves_a_zero_gradient_zero():
    assert_close(norm(unit(A)).item(), 1.0, atol=1e-7, rtol=0)
    assert all((x == 0).all() for x in unit([torch.zeros(3)]))


def test_combined_adds_multiples_and_a_zero_factor_leaves_the_first_bit_for_bit():
    assert_close(combined(A, (2.0, B), (-1.0, A)), scaled(B, 2.0))
    assert all(torch.equal(x, y) for x, y in zip(combined(A, (0.0, [t * torch.nan for t in B])), A, strict=True))


def test_difference_of_a_gradient_with_itself_is_zero():
    assert norm(difference(A, A)).item() == 0.0


def test_a_norm_of_bf16_gradients_is_taken_in_float32():
    many = [torch.full((10_000,), 0.01, dtype=torch.bfloat16)]
    assert_close(norm(many).item(), float(many[0][0]) * 100, rtol=1e-5, atol=0)
