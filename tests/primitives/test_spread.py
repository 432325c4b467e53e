import pytest
import torch

from antibody_llm.primitives.spread import equal_quotas, hashed_words, k_centres, nearest_centre


def test_centres_on_a_line_are_worked_out_by_hand():
    line = torch.tensor([[0.0], [1.0], [4.0], [10.0], [10.0]])
    # From 0 the farthest is 10 (index 3, the first of two); then 4, at 4 from 0; then 1; then the twin of 10, at 0.
    assert k_centres(line, 5, first=0) == [0, 3, 2, 1, 4]
    assert k_centres(line, 2, first=0) == [0, 3]
    assert k_centres(line, 0, first=2) == []
    assert nearest_centre(line, [0, 3]) == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("num", "sizes", "quotas"),
    [
        (6, [9, 9, 9], [2, 2, 2]),
        (7, [9, 8, 9], [3, 2, 2]),
        (10, [2, 9, 9], [2, 4, 4]),
        (2, [1, 5, 9], [0, 1, 1]),
        (0, [3], [0]),
    ],
)
def test_quotas_are_even_and_short_groups_hand_on_their_share(num, sizes, quotas):
    assert equal_quotas(num, sizes) == quotas


def test_vectors_of_texts_do_not_depend_on_what_else_is_embedded():
    assert torch.equal(hashed_words(["a b", "c"])[0], hashed_words(["a b"])[0])
