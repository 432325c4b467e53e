import math

import pytest
import torch

from antibody_llm.primitives.mixture import log_density_ratio, share_log_likelihood
from antibody_llm.screening.posterior import (
    CHI_SQUARE_95,
    MAX_RESAMPLED,
    Finding,
    drawn_interval,
    judge_upload,
    likelihood_interval,
    share_p_value,
)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr("antibody_llm.screening.posterior.NUM_DRAWS", 40)


def drawn(num, mean, seed):
    return mean + 0.15 * torch.randn(num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


HARMFUL, BENIGN = drawn(100, 1.0, 1), drawn(100, 0.0, 2)


def upload(num, share, seed=3):
    num_harmful = round(num * share)
    return torch.cat([drawn(num_harmful, 1.0, seed), drawn(num - num_harmful, 0.0, seed + 100)])


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9, 1.0])
def test_the_share_is_found_its_interval_holds_it_and_rows_are_told_apart(share):
    judged = judge_upload(upload(600, share), HARMFUL, BENIGN)
    assert judged.share == pytest.approx(share, abs=0.02)
    low, high = judged.interval
    assert low <= share <= high
    assert high - low < 0.1
    assert judged.verdict is Finding.HARM
    truth = torch.arange(600) < round(600 * share)
    assert ((judged.probability >= 0.5) == truth).double().mean() > 0.99
    assert float(judged.probability.mean()) == pytest.approx(share, abs=0.02)


def test_no_harm_is_found_where_there_is_none_and_ten_rows_are_less_proof_than_a_thousand():
    for seed in range(3):
        judged = judge_upload(upload(1000, 0.0, seed), HARMFUL, BENIGN)
        assert judged.verdict is Finding.NO_HARM
        assert judged.share < 0.005
        assert judged.interval[1] < 0.02
    few = judge_upload(upload(10, 0.0), HARMFUL, BENIGN)
    assert few.verdict is Finding.NO_HARM
    assert 0.1 < few.interval[1] < 0.4


def test_a_row_that_is_alone_is_not_called_harmless_for_certain_nor_its_contrary_harmful():
    lone = judge_upload(torch.cat([drawn(1, 1.0, 5), upload(2000, 0.0)]), HARMFUL, BENIGN)
    assert lone.verdict is Finding.NO_HARM
    assert 0.02 < float(lone.probability[0]) < 0.9
    assert float(lone.probability[1:].max()) < 0.1
    spared = judge_upload(torch.cat([drawn(1, 0.0, 5), upload(2000, 1.0)]), HARMFUL, BENIGN)
    assert 0.1 < float(spared.probability[0]) < 0.98


def test_a_row_that_is_repeated_counts_towards_the_share_and_is_no_further_evidence():
    # One row at even odds, a hundred times: the most likely share of these is 1, and yet it is one row.
    ratio = log_density_ratio(HARMFUL, BENIGN)
    doubtful = torch.tensor([(1.0 - ratio.bias) / float(ratio.slope)]).double()
    rows = torch.cat([doubtful.expand(100), upload(20, 0.0)])
    repeated = torch.cat([torch.arange(100) > 0, torch.zeros(20).bool()])
    assert judge_upload(rows, HARMFUL, BENIGN).verdict is Finding.HARM
    judged = judge_upload(rows, HARMFUL, BENIGN, repeated=repeated)
    assert judged.verdict is Finding.NO_HARM
    assert judged.share > 0.5


def test_the_p_value_is_half_the_tail_of_chi_square():
    lam = torch.tensor([3.0, -2.0, -2.0])
    best = max(share_log_likelihood(lam, share / 10_000) for share in range(10_001))
    # P(chi^2_1 > D) = P(|Z| > sqrt D) for a standard normal Z
    assert share_p_value(lam) == pytest.approx(0.5 * math.erfc(math.sqrt(best)), rel=1e-4)
    assert share_p_value(torch.tensor([-1.0, -1.0])) == 0.5


def test_the_likelihood_interval_ends_where_the_likelihood_has_fallen_by_half_of_chi_square():
    lam = torch.tensor([3.0, 3.0, 3.0, -3.0, -3.0, -3.0, -3.0])
    low, high = likelihood_interval(lam)
    best = max(share_log_likelihood(lam, share / 10_000) for share in range(10_001))
    for edge in (low, high):
        assert best - share_log_likelihood(lam, edge) == pytest.approx(CHI_SQUARE_95 / 2, abs=1e-3)
    # all clearly benign: l(share) = n log(1 - share)
    low, high = likelihood_interval(torch.full((50,), -60.0))
    assert low == 0.0
    assert high == pytest.approx(1 - math.exp(-CHI_SQUARE_95 / 2 / 50), abs=1e-4)


def test_quantiles_stand_for_a_large_upload_with_little_change():
    rows = upload(4 * MAX_RESAMPLED, 0.1)
    thinned = rows.sort().values[::4][torch.randperm(MAX_RESAMPLED, generator=torch.Generator().manual_seed(0))]
    large, small = drawn_interval(rows, HARMFUL, BENIGN), drawn_interval(thinned, HARMFUL, BENIGN)
    assert large[0] <= 0.1 <= large[1]
    assert large == pytest.approx(small, abs=0.003)


def test_an_upload_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="no rows"):
        judge_upload(torch.zeros(0), HARMFUL, BENIGN)


def test_with_nothing_unfamiliar_the_judgement_is_the_same():
    rows = upload(300, 0.2)
    plain = judge_upload(rows, HARMFUL, BENIGN)
    same = judge_upload(rows, HARMFUL, BENIGN, unfamiliar=torch.zeros(300, dtype=torch.bool))
    assert torch.equal(plain.probability, same.probability)
    assert (plain.share, plain.interval, plain.p_value) == (same.share, same.interval, same.p_value)


@pytest.mark.parametrize(("num_odd", "verdict"), [(12, "cannot tell"), (250, "cannot tell")])
def test_harm_that_only_unfamiliar_rows_show_is_neither_found_nor_denied(num_odd, verdict):
    rows = torch.cat([upload(300, 0.0), drawn(num_odd, 0.85, 8)])
    assert judge_upload(rows, HARMFUL, BENIGN).verdict is Finding.HARM  # at face value
    judged = judge_upload(rows, HARMFUL, BENIGN, unfamiliar=torch.arange(len(rows)) >= 300)
    assert judged.verdict == verdict
    assert judged.share is None
    assert judged.probability.isnan().all()  # P(harm) would follow from the share
    low, high = judged.interval
    assert low == 0.0
    assert high == pytest.approx(num_odd / len(rows), abs=0.03)
    assert high >= num_odd / len(rows)


def test_unfamiliar_rows_do_not_hide_the_harm_among_the_others():
    rows = torch.cat([upload(300, 0.2), drawn(250, 0.5, 8)])
    judged = judge_upload(rows, HARMFUL, BENIGN, unfamiliar=torch.arange(550) >= 300)
    assert judged.verdict is Finding.HARM
    assert judged.share is None
    low, high = judged.interval
    assert low < 60 / 550 < 310 / 550 < high
    assert judged.probability[300:].isnan().all()
    truth = torch.arange(300) < 60
    assert ((judged.probability[:300] >= 0.5) == truth).double().mean() > 0.99


def test_few_unfamiliar_rows_widen_the_interval_and_leave_share_and_probabilities():
    rows = upload(300, 0.2)
    odd = torch.arange(300) % 40 == 0  # 8, two of them harmful
    plain, judged = judge_upload(rows, HARMFUL, BENIGN), judge_upload(rows, HARMFUL, BENIGN, unfamiliar=odd)
    assert (judged.share, judged.verdict) == (plain.share, plain.verdict)
    assert torch.equal(judged.probability[~odd], plain.probability[~odd])
    assert judged.probability[odd].isnan().all()
    assert judged.interval[1] > plain.interval[1]


def test_where_every_row_is_unfamiliar_the_share_is_anything():
    judged = judge_upload(upload(50, 0.5), HARMFUL, BENIGN, unfamiliar=torch.ones(50, dtype=torch.bool))
    assert (judged.verdict, judged.share, judged.interval) == (Finding.CANNOT_TELL, None, (0.0, 1.0))
