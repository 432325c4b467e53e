import torch
from torch.testing import assert_close

from antibody_llm.primitives.bag_scorer import WIDTH, bag_scores, new_scorer


def test_a_fresh_scorer_scores_every_row_exactly_zero():
    phi = new_scorer(10, torch.Generator().manual_seed(0))
    assert bag_scores(phi, [[1, 2], [3]], [[4], [5, 6, 7]]).tolist() == [0.0, 0.0]


def test_a_score_is_the_formula_on_the_mean_embeddings():
    phi = new_scorer(10, torch.Generator().manual_seed(0))
    phi[3] = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    embeddings, hidden, bias, last = phi
    x = torch.cat([embeddings[[1, 2]].mean(0), embeddings[[4, 4, 5]].mean(0)])
    assert_close(bag_scores(phi, [[9], [1, 2]], [[9], [4, 4, 5]])[1], last @ torch.tanh(hidden @ x + bias))
