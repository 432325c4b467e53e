import torch
from torch.testing import assert_close

from antibody_llm.primitives.worth import net_worth


def test_worth_by_hand():
    # p = 0, 0.2, 1/4, 1 at c = 3: (0.8 - 0.6) / (0.8 + 0.6) = 1/7, and 3/4 - 3/4 = 0
    assert_close(net_worth(torch.tensor([0.0, 0.2, 0.25, 1.0]), 3.0), torch.tensor([1.0, 1 / 7, 0.0, 0.0]))
