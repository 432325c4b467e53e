"""Made-up jobs: what is held out is not known, and what came to nothing is in no figure."""

import random

import pytest

from antibody_llm.attacks.catalogue import CATALOGUE
from antibody_llm.audit.summary import FAMILIES, FAMILY, FOLDS, HONEST, Outcome, summarise
from antibody_llm.errors import DataError
from antibody_llm.primitives.statistics import clopper_pearson

SIGNS = ("mixing", "covert", "noice")


def outcomes(num=20):
    """Honest jobs and three attacks, each with a sign of its own; mixing and noice share one."""
    rng, made = random.Random(0), []
    for attack in (*SIGNS, *[HONEST] * 3):
        for _ in range(num):
            signs = {"harm": attack in ("mixing", "noice"), "code": attack == "covert", "noise": False}
            features = {name: 6.0 * sign + rng.gauss(0, 1) for name, sign in signs.items()}
            made.append(Outcome(attack, features, 0.0 if attack == HONEST else 0.9))
    return made


def test_every_attack_is_of_one_family():
    assert set(FAMILY) == set(CATALOGUE)
    assert sum(map(len, FAMILIES.values())) == len(CATALOGUE)


def test_a_family_with_a_sign_of_its_own_is_caught_only_where_it_is_known():
    found = summarise(outcomes(), rate=0.05, margin=0.1)
    assert found.known["covert"].hits >= 18
    assert found.held_out["ciphers"].caught.hits <= 5
    assert found.unseen["covert"] == found.held_out["ciphers"].caught
    assert found.held_out["harmless rows"].caught.hits >= 18  # it has the sign of another one
    assert found.overall.false_alarms.hits <= 3
    assert found.overall.to_json()["auroc"] > 0.95


def test_an_attack_that_comes_to_nothing_is_counted_apart():
    weak = [Outcome("embedded", {"harm": 6.0, "code": 0.0, "noise": 0.0}, 0.05) for _ in range(4)]
    found, without = (
        summarise([*outcomes(), *weak], rate=0.05, margin=0.1),
        summarise(outcomes(), rate=0.05, margin=0.1),
    )
    assert found.overall.caught.n == without.overall.caught.n == 60
    assert found.known["embedded"].n == 0
    assert (found.failed["embedded"].n, found.failed["embedded"].hits) == (4, 4)
    assert found.failed["mixing"].n == 0


def test_an_honest_job_that_comes_to_harm_counts_as_honest():
    broken = Outcome(HONEST, {"harm": 0.0, "code": 0.0, "noise": 0.0}, 0.9)
    found = summarise([*outcomes(), broken], rate=0.05, margin=0.1)
    assert found.honest_harm == 1
    assert found.overall.false_alarms.n == 61


def test_too_few_jobs_are_refused():
    with pytest.raises(DataError, match=f"0 of the attackers' jobs came to harm and 60 jobs are honest: {FOLDS}"):
        summarise(
            [Outcome(HONEST, each.features, 0.0) for each in outcomes() if each.attack == HONEST], rate=0.01, margin=0.1
        )


def test_the_roc_goes_from_nothing_to_everything():
    points = summarise(outcomes(), rate=0.05, margin=0.1).overall.points()
    assert (points[0], points[-1]) == ((0.0, 0.0), (1.0, 1.0))
    assert points == sorted(points)


def test_the_interval_is_that_of_clopper_and_pearson():
    assert clopper_pearson(0, 150) == pytest.approx((0, 1 - 0.025 ** (1 / 150)))
    assert clopper_pearson(20, 20) == pytest.approx((0.025 ** (1 / 20), 1))
    assert clopper_pearson(4, 20) == pytest.approx((0.05733, 0.43661), abs=1e-4)
