import math

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.primitives.mixture import (
    harm_posterior,
    harmful_share,
    log_density_ratio,
    resampled_interval,
    share_log_likelihood,
)


def gaussian(mean, num, seed):
    return mean + torch.randn(num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_ratio_of_two_gaussians_is_found():
    # N(2, 1) over N(0, 1): log ratio = 2 e - 2
    ratio = log_density_ratio(gaussian(2.0, 20000, 0), gaussian(0.0, 20000, 1))
    assert float(ratio.slope) == pytest.approx(2.0, abs=0.05)
    assert ratio.bias == pytest.approx(-2.0, abs=0.1)


def test_the_number_of_labelled_rows_of_each_class_does_not_matter():
    few = log_density_ratio(gaussian(2.0, 2000, 0), gaussian(0.0, 40000, 1))
    assert few.bias == pytest.approx(-2.0, abs=0.1)


def test_the_fit_minimises_the_penalised_loss_that_the_docstring_gives():
    harmful, benign, spread = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([0.0, -1.0]).double(), 3.0
    ratio = log_density_ratio(harmful, benign, spread=spread)
    scores = torch.cat([harmful, benign])
    y, weight = torch.tensor([1.0, 1, 1, 0, 0]).double(), torch.tensor([5 / 6] * 3 + [5 / 4] * 2).double()
    a, b = ratio.slope.clone().requires_grad_(), torch.tensor(ratio.bias, dtype=torch.float64, requires_grad=True)
    nll = torch.nn.functional.binary_cross_entropy_with_logits(a * scores + b, y, weight=weight, reduction="sum")
    scale = scores.std(correction=0)
    loss = nll + 0.5 * (a * scale / spread).square().sum()
    for gradient in torch.autograd.grad(loss, (a, b)):
        assert_close(gradient, torch.zeros_like(gradient), atol=1e-8, rtol=0)


def test_perfectly_separated_labels_do_not_run_away():
    ratio = log_density_ratio(torch.tensor([1.0, 1.1, 1.2]), torch.tensor([0.0, 0.1]))
    assert 0 < float(ratio.slope) < 50


@pytest.mark.parametrize("bad", [(torch.ones(0), torch.ones(3)), (torch.ones(2), torch.ones(3))])
def test_labels_that_can_teach_nothing_are_refused(bad):
    with pytest.raises(ValueError, match=r"labelled row"):
        log_density_ratio(*bad)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.5, 0.9, 1.0])
def test_the_share_of_a_mixture_is_found_from_none_to_all(share):
    num = 20000
    e = torch.cat([gaussian(3.0, round(share * num), 2), gaussian(0.0, num - round(share * num), 3)])
    assert harmful_share(3 * e - 4.5) == pytest.approx(share, abs=0.01)  # the true log ratio


def test_the_share_has_the_highest_likelihood_of_all():
    ratio = torch.tensor([-3.0, 2.0, 0.5, -1.0, 4.0])
    best = harmful_share(ratio)
    grid = [i / 1000 for i in range(1, 1000)]
    assert share_log_likelihood(ratio, best) >= max(share_log_likelihood(ratio, pi) for pi in grid) - 1e-9
    by_hand = sum(math.log(best * math.exp(x) + 1 - best) for x in ratio.tolist())
    assert share_log_likelihood(ratio, best) == pytest.approx(by_hand)


def test_two_benign_clusters_are_not_harm_and_extreme_ratios_do_not_overflow():
    ratio = torch.cat([torch.full((50,), -900.0), torch.full((50,), -4.0)])
    assert harmful_share(ratio) == 0.0
    assert harmful_share(-ratio) == 1.0
    assert harm_posterior(ratio, 0.0).tolist() == [0.0] * 100


def test_the_prior_counts_like_rows_already_seen():
    ratio = torch.tensor([800.0] * 3 + [-800.0] * 5)  # 3 harmful, 5 benign for certain
    assert harmful_share(ratio, alpha=2, beta=3) == pytest.approx((3 + 1) / (8 + 1 + 2))
    assert harmful_share(ratio, beta=math.inf) == 0.0


def test_posterior_by_hand():
    got = harm_posterior(torch.tensor([0.0, math.log(4.0)]), 0.2)
    assert got.tolist() == pytest.approx([0.2, 0.5])


def test_a_share_of_nothing_raises():
    with pytest.raises(ValueError, match="no rows"):
        harmful_share(torch.ones(0))


def test_the_interval_covers_and_is_the_same_every_time():
    harmful, benign = gaussian(3.0, 200, 4), gaussian(0.0, 200, 5)
    e = torch.cat([gaussian(3.0, 60, 6), gaussian(0.0, 240, 7)])

    def share(h, b, u):
        return harmful_share(log_density_ratio(harmful[h], benign[b])(e[u]))

    low, high = resampled_interval(share, (200, 200, 300), num=60)
    assert low < 0.2 < high
    assert high - low < 0.15
    assert (low, high) == resampled_interval(share, (200, 200, 300), num=60)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_ratio_that_is_not_finite_raises_instead_of_making_all_rows_harmless(bad):
    ratio = torch.tensor([10.0] * 50 + [bad])
    for read in (harmful_share, lambda values: harm_posterior(values, 0.0), lambda values: harm_posterior(values, 0.5)):
        with pytest.raises(ValueError, match="not finite"):
            read(ratio)
