import pytest
import torch

from antibody_llm.primitives.statistics import auroc


def test_auroc_is_the_share_of_pairs_in_order_with_ties_counting_half_by_hand():
    assert auroc(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0])) == 1.0
    assert auroc(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 2.0])) == (1 + 0 + 1 + 0.5) / 4
    with pytest.raises(ValueError, match="nothing"):
        auroc(torch.ones(0), torch.ones(2))
