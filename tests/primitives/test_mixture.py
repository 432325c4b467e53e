import math

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.primitives.density import kernel_width
from antibody_llm.primitives.mixture import (
    halved_log_ratio,
    harm_posterior,
    harmful_share,
    log_density_ratio,
    resampled_interval,
    share_log_likelihood,
    unexpected,
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


def drawn_halves(parts, num, harmful, benign, seed):
    """An upload of the labelled classes' own halves, in these parts: harm low, harm high, benign low, benign high."""
    generator = torch.Generator().manual_seed(seed)
    halves = [half for side in (harmful, benign) for half in side.sort().values.chunk(2)]
    picked = [
        half[torch.randint(len(half), (round(part * num),), generator=generator)]
        for half, part in zip(halves, parts, strict=True)
    ]
    return torch.cat(picked)


HARMFUL, BENIGN = gaussian(3.0, 300, 4), gaussian(0.0, 500, 5)


def test_the_ratio_by_halves_is_that_of_the_most_likely_parts():
    scores = drawn_halves((0.2, 0.1, 0.4, 0.3), 400, HARMFUL, BENIGN, 6)
    width = min(kernel_width(HARMFUL), kernel_width(BENIGN))
    halves = [half for side in (HARMFUL, BENIGN) for half in side.sort().values.chunk(2)]
    p = torch.stack(
        [torch.exp(torch.distributions.Normal(half, width).log_prob(scores[:, None])).mean(1) for half in halves]
    )
    free = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([free], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = -(torch.softmax(free, 0) @ p).log().sum()
        value.backward()
        return value

    optimiser.step(loss)
    v = torch.softmax(free.detach(), 0)
    ratio = ((v[0] * p[0] + v[1] * p[1]) / (v[0] + v[1]) / ((v[2] * p[2] + v[3] * p[3]) / (v[2] + v[3]))).log()
    # From midway between the medians on the ratio may not fall.
    above = (scores > 1.5).nonzero()[:, 0]
    up = above[scores[above].argsort()]
    found = halved_log_ratio(HARMFUL, BENIGN)(scores)
    assert_close(found[up], ratio[up].cummax(0).values, atol=0.05, rtol=0.02)
    assert harmful_share(found) == pytest.approx(float(v[0] + v[1]), abs=2e-3)


def test_harm_that_is_all_of_the_lower_half_counts_in_full_only_by_halves():
    scores = drawn_halves((0.2, 0.0, 0.7, 0.1), 3000, HARMFUL, BENIGN, 7)
    assert harmful_share(halved_log_ratio(HARMFUL, BENIGN)(scores)) == pytest.approx(0.2, abs=0.03)
    assert harmful_share(log_density_ratio(HARMFUL, BENIGN)(scores)) < 0.15


@pytest.mark.parametrize("parts", [(0, 0, 1.0, 0), (0, 0, 0, 1.0), (0, 0, 0.5, 0.5)])
@pytest.mark.parametrize("num", [30, 3000])
def test_by_halves_an_upload_without_harm_has_none_at_all(parts, num):
    assert harmful_share(halved_log_ratio(HARMFUL, BENIGN)(drawn_halves(parts, num, HARMFUL, BENIGN, 8))) == 0


@pytest.mark.parametrize("num", [1, 300])
def test_by_halves_an_upload_of_harm_alone_is_all_harm(num):
    assert harmful_share(halved_log_ratio(HARMFUL, BENIGN)(drawn_halves((0, 1, 0, 0), num, HARMFUL, BENIGN, 8))) == 1


def test_by_halves_a_score_further_up_is_never_less_harmful():
    outlier = torch.cat([BENIGN, torch.tensor([9.0]).double()])
    scores = torch.linspace(-6, 20, 400).double()
    assert bool((halved_log_ratio(HARMFUL, outlier)(scores).diff() >= 0).all())


def test_halves_that_read_alike_are_not_told_apart():
    harmful = gaussian(2.0, 300, 4)
    scores = drawn_halves((0.2, 0.0, 0.7, 0.1), 300, harmful, BENIGN, 7)
    assert_close(halved_log_ratio(harmful, BENIGN)(scores), log_density_ratio(harmful, BENIGN)(scores))


@pytest.mark.parametrize("bad", [(torch.ones(1), torch.zeros(3)), (torch.ones(2), torch.ones(3))])
def test_halves_of_nothing_are_refused(bad):
    with pytest.raises(ValueError, match=r"labelled row"):
        halved_log_ratio(*bad)


def test_a_crowd_that_no_labelled_row_leads_to_expect_is_less_likely_harm_the_larger_it_is():
    harmful, benign = 1 + gaussian(0.0, 200, 1) / 10, gaussian(0.0, 200, 2) / 10
    ratio = log_density_ratio(harmful, benign)
    upload = torch.cat(
        [0.4 + gaussian(0.0, 200, 3) / 1000, 1 + gaussian(0.0, 50, 4) / 10, torch.tensor([0.6]).double()]
    )
    found = unexpected(upload, 0.2, ratio, harmful, benign)
    width = max(kernel_width(harmful), kernel_width(benign))

    def at(scores, e):
        return float(torch.exp(-((e - scores) / width).square() / 2).sum())

    assert float(ratio(upload[:200]).max()) < 0 < float(ratio(upload[200:250]).min())
    for i in (0, 10):
        e, lam = float(upload[i]), float(ratio(upload[i : i + 1]))
        f_b, f_h = at(benign, e) / 200, at(harmful, e) / 200
        f_h, f_b = max(f_h, f_b * math.exp(lam)), max(f_b, f_h * math.exp(-lam))
        expected = 251 * (0.2 * f_h + 0.8 * f_b)
        assert float(found[i]) == pytest.approx(min(1.0, (expected + 1) / at(upload, e)), rel=1e-6)
    assert float(found[:200].max()) < 0.03  # 200 rows where about two are expected
    assert found[200:].tolist() == [1.0] * 51  # what is nearer to harm


def test_a_row_alone_keeps_its_probability_whichever_side_it_is_on():
    harmful, benign = 1 + gaussian(0.0, 200, 1) / 10, gaussian(0.0, 200, 2) / 10
    upload = torch.cat([gaussian(0.0, 200, 3) / 10, torch.tensor([0.45, 0.6]).double()])
    found = unexpected(upload, 0.01, log_density_ratio(harmful, benign), harmful, benign)
    assert found[200:].tolist() == pytest.approx([1.0, 1.0], abs=0.01)


def test_the_rows_of_a_large_upload_are_counted_by_its_quantiles():
    harmful, benign = gaussian(3.0, 100, 1), gaussian(0.0, 100, 2)
    ratio, upload = log_density_ratio(harmful, benign), gaussian(1.0, 20_000, 3)
    every = torch.cat([upload, torch.tensor([-900.0, 900.0]).double()])
    found = unexpected(every, 0.1, ratio, harmful, benign)
    assert bool(torch.isfinite(found).all())
    some = torch.randperm(20_000, generator=torch.Generator().manual_seed(5))[:4_000]
    assert_close(unexpected(upload[some], 0.1, ratio, harmful, benign), found[some], atol=0.1, rtol=0.1)
