"""The ranges of every defence that can be searched: of its own options, around its defaults."""

import pytest

from antibody_llm.calibration.space import SPACES, TRAINING, OneOf, all_options, defaults, draw, find_space, split
from antibody_llm.data.roles import Stage
from antibody_llm.defences.catalogue import make_defence
from antibody_llm.errors import ConfigError

EVERY = pytest.mark.parametrize(("stage", "defence"), list(SPACES), ids=lambda part: str(part))


class Extreme:
    """A trial that draws an end of every range, or one of several values by its place."""

    number = 0

    def __init__(self, last):
        self.place = -1 if last else 0

    def suggest_int(self, name, low, high, *, log=False):
        return (low, high)[self.place]

    suggest_float = suggest_int

    def suggest_categorical(self, name, choices):
        return choices[self.place]


@EVERY
@pytest.mark.parametrize("last", [False, True])
def test_every_setting_that_can_be_drawn_is_one_that_the_defence_takes(stage, defence, last):
    drawn = draw(Extreme(last), SPACES[stage, defence])
    make_defence(stage, defence, all_options(stage, defence) | dict(drawn.options))
    assert not any(name.startswith(TRAINING) for name in drawn.options)


@EVERY
def test_the_first_trial_has_the_defaults_of_the_defence_and_is_within_the_ranges(stage, defence):
    first = defaults(stage, defence)
    for name, each in find_space(stage, defence).items():
        within = first[name] in each.values if isinstance(each, OneOf) else each.low <= first[name] <= each.high
        assert within, name
    assert all_options(stage, defence) == all_options(stage, defence) | dict(split(first).options)


@pytest.mark.parametrize("defence", ["antibody", "antibody-posterior", "bds", "lisa"])
def test_the_fine_tuning_defences_of_the_headline_can_be_searched(defence):
    assert find_space(Stage.FINETUNING, defence)


def test_a_defence_without_ranges_is_refused_and_the_nearest_one_offered():
    with pytest.raises(ConfigError, match="did you mean 'booster'"):
        find_space(Stage.ALIGNMENT, "boster")
