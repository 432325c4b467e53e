"""Simulated users cover the ranges, and a range is read as it is written."""

import pytest

from antibody_llm.calibration.simulate import Ranges, Simulation, parse_range, simulations
from antibody_llm.errors import ConfigError
from antibody_llm.profiles import Profile, profile_of
from antibody_llm.settings.calibrate import CalibrateSettings

RANGES = Ranges((0.1, 0.4), (1.0, 4.0), (1e-4, 4e-4))


def test_the_first_user_is_honest_and_has_the_middle_of_every_range():
    assert simulations(RANGES, 2, rows=100, seed=0)[0] == Simulation(0.0, 2, 2e-4)


@pytest.mark.parametrize("seed", range(3))
def test_each_equal_part_of_the_harmful_shares_has_one_attacker(seed):
    ratios = sorted(user.poison_ratio for user in simulations(RANGES, 4, rows=100, seed=seed)[1:])
    assert all(low - 0.005 <= ratio <= low + 0.105 for low, ratio in zip((0.1, 0.2, 0.3), ratios, strict=True))


def test_users_are_those_of_the_seed():
    again, other = (simulations(RANGES, 4, rows=100, seed=seed) for seed in (0, 1))
    assert simulations(RANGES, 4, rows=100, seed=0) == again != other


def test_an_attacker_has_a_row_of_however_few():
    assert simulations(Ranges((0.01, 0.01), (1, 1), (1e-4, 1e-4)), 2, rows=10, seed=0)[1].poison_ratio == 0.1


def test_a_range_is_two_numbers_or_one():
    assert (parse_range("0.1..0.4", "epochs"), parse_range("1e-4", "epochs")) == ((0.1, 0.4), (1e-4, 1e-4))
    assert parse_range(3, "epochs") == (3.0, 3.0)
    for wrong in ("0.4..0.1", "a", "1..", "1...2", "", "nan", "0.1-0.4"):
        with pytest.raises(ConfigError, match="LOW..HIGH"):
            parse_range(wrong, "epochs")


def test_what_is_not_given_is_around_what_the_model_s_users_train_with():
    settings = CalibrateSettings(model="lab-aligned", output="out", regime="full")
    assert Ranges.of(settings, profile_of("lab-aligned")) == Ranges((0.05, 0.3), (2.0, 6.0), (1e-4, 4e-4))
    assert Ranges.of(settings, Profile()).epochs == (1.0, 5.0)


@pytest.mark.parametrize("given", [{"poison_ratios": "0.5..1.5"}, {"epochs": "0..3"}, {"learning_rates": "0"}])
def test_a_range_lies_within_what_can_be(given):
    settings = CalibrateSettings(model="lab-aligned", output="out", **given)
    with pytest.raises(ConfigError, match="must lie between"):
        Ranges.of(settings, Profile())
