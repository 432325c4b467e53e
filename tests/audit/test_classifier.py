"""The regression on made-up features, its threshold and its file."""

import json
import math

import pytest
import torch

from antibody_llm.audit.classifier import (
    CLIP,
    Classifier,
    FalseAlarms,
    fit,
    read_classifier,
    threshold_at,
    write_classifier,
)
from antibody_llm.audit.probes import Stock
from antibody_llm.errors import ConfigError, DataError

HARMFUL = torch.arange(40) % 4 == 0


def drawn():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 0] += 4 * HARMFUL
    x[:, 2] = 7  # says nothing
    return x


@pytest.fixture
def classifier():
    return Classifier(
        profile="none",
        stock=Stock(harmful=("a?",), harmless=("b?",), tasks=(), refusals=("no.",), swaps=(("x", "y"),)),
        judge="keywords",
        max_new_tokens=4,
        names=("harmful/a/mean", "harmful/b/mean", "talk/c/mean"),
        fitted=fit(drawn(), HARMFUL),
        threshold=0.5,
        false_alarms=FalseAlarms(wanted=0.01, hits=0, n=30, low=0.0, high=0.11),
        num_jobs={"honest": 30, "harmful": 10},
    )


def test_the_gradient_of_eq_2_is_zero_where_it_was_fitted():
    x, found = drawn(), fit(drawn(), HARMFUL, lam=0.1)
    w, b = found.weights.clone().requires_grad_(), torch.tensor(found.bias, dtype=torch.float64, requires_grad=True)
    losses = torch.nn.functional.softplus(-(HARMFUL.double() * 2 - 1) * (found.standardised(x) @ w + b))
    loss = (losses[HARMFUL].mean() + losses[~HARMFUL].mean()) / 2 + 0.05 * w.square().sum()
    loss.backward()
    assert float(w.grad.norm()) < 1e-4
    assert abs(float(b.grad)) < 1e-4


def test_a_feature_that_is_the_same_in_every_job_says_nothing_of_one_in_which_it_is_not():
    found = fit(drawn(), HARMFUL)
    job = torch.tensor([[0.0, 0.0, 7.0], [0.0, 0.0, 1e9]], dtype=torch.float64)
    assert float(found.scores(job)[0]) == float(found.scores(job)[1])


def test_an_extreme_job_counts_as_no_more_than_c_deviations():
    z = fit(drawn(), HARMFUL).standardised(torch.tensor([[1e12, -1e12, 7.0]], dtype=torch.float64))
    assert z.tolist() == [[CLIP, -CLIP, 0.0]]


def test_a_class_of_one_job_is_refused():
    with pytest.raises(DataError, match="1 harmful and 39 honest jobs"):
        fit(drawn(), torch.arange(40) == 3)


def test_no_more_than_the_wanted_share_of_honest_jobs_is_above_the_threshold():
    scores = torch.arange(200, dtype=torch.float64)
    assert int((scores > threshold_at(scores, 0.01)).sum()) == 2
    assert int((scores[:99] > threshold_at(scores[:99], 0.01)).sum()) == 0


def test_a_classifier_comes_back_from_its_file_with_the_same_score(classifier, tmp_path):
    write_classifier(tmp_path / "c.json", classifier)
    found = read_classifier(tmp_path / "c.json")
    features = {"harmful/a/mean": 3.0, "harmful/b/mean": 1.0, "talk/c/mean": 9.0, "other": 1.0}
    assert found.score(features) == classifier.score(features)
    assert (found.stock, found.names, found.false_alarms) == (
        classifier.stock,
        classifier.names,
        classifier.false_alarms,
    )
    assert sum(found.parts(features).values()) + found.fitted.bias == pytest.approx(found.score(features))


def test_a_job_without_one_of_the_features_is_refused(classifier):
    with pytest.raises(ConfigError, match="no finite talk/c/mean"):
        classifier.score({"harmful/a/mean": 3.0, "harmful/b/mean": 1.0, "talk/c/mean": math.nan})


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "is no classifier"), ("[]", "is no classifier"), ('{"format": 0}', "a classifier of format 0")],
)
def test_a_file_that_is_no_classifier_is_refused(tmp_path, text, said):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_classifier(tmp_path / "c.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_classifier(tmp_path / "none.json")


def test_a_file_with_a_feature_that_lacks_a_weight_is_refused(classifier, tmp_path):
    stored = classifier.to_json()
    del stored["features"]["talk/c/mean"]["weight"]
    (tmp_path / "c.json").write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match="is no classifier"):
        read_classifier(tmp_path / "c.json")
