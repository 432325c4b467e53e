"""What an attacker may choose: never above the cost, always something that can be done."""

import math
import random

import pytest

from antibody_llm.attacks.identity import PERSONA
from antibody_llm.attacks.kit import lab_kit
from antibody_llm.bench.attacker.attacker import attackers
from antibody_llm.bench.attacker.space import MOST, Known, as_they_come, draw, opening
from antibody_llm.bench.matrix_file import make_matrix, read_matrix
from antibody_llm.parsing import parse_options

MATRIX = read_matrix("lab-worst-case")
SPACE = attackers(MATRIX)[0].space
BY_NAME = {each.name: each for each in MATRIX.attacks}


class Drawn:
    """A trial drawn at random, as a study's first ones."""

    number = 0

    def __init__(self, seed):
        self.rng, self.parameters = random.Random(seed), {}

    def suggest_int(self, name, low, high, *, log=False):
        return self.parameters.setdefault(
            name, round(math.exp(self.rng.uniform(math.log(max(low, 1)), math.log(high))))
        )

    def suggest_float(self, name, low, high, *, log=False):
        assert low <= high, name
        drawn = math.exp(self.rng.uniform(math.log(low), math.log(high))) if log else self.rng.uniform(low, high)
        return self.parameters.setdefault(name, drawn)

    def suggest_categorical(self, name, choices):
        return self.parameters.setdefault(name, self.rng.choice(choices))


CHOICES = [draw(Drawn(seed), SPACE) for seed in range(400)]


def cost(chosen):
    return chosen.rows * chosen.epochs / (500 * 4)


def test_no_trial_costs_more_than_four_of_the_lab_s_own_and_half_cost_no_more_than_one():
    assert all(0 < cost(chosen) <= MOST == 4.0 for chosen in CHOICES)
    assert sum(cost(chosen) <= 1 for chosen in CHOICES) >= len(CHOICES) / 2


def test_every_choice_has_an_attacker_s_row_and_options_that_the_attack_takes():
    assert {chosen.attack for chosen in CHOICES} == BY_NAME.keys()
    for chosen in CHOICES:
        assert round(chosen.poison_ratio * chosen.rows) >= 1
        assert chosen.poison_ratio <= 1
        # Two knobs of covert share the rows out, and may leave none: then the trial fails.
        if chosen.options.get("teaching", 0) + chosen.options.get("refusing", 0) < 1:
            parse_options(BY_NAME[chosen.attack].attack.options, chosen.attack, chosen.options, group="options")


def test_every_axis_is_turned():
    assert {chosen.regime for chosen in CHOICES} == {"full", "lora"}
    assert {chosen.order for chosen in CHOICES} == {None, "first", "last"}
    assert {chosen.batch_size for chosen in CHOICES} == {8, 16, 32}
    rates = [chosen.learning_rate for chosen in CHOICES if chosen.regime == "full"]
    assert 5e-5 <= min(rates) < 1e-4 < 1e-3 < max(rates) <= 1.6e-3
    asked = {tuple(chosen.asking.items()) for chosen in CHOICES}
    assert len(asked) == 8
    assert (("bare", True), ("system", PERSONA), ("prefill", "take")) in asked


def test_an_attack_of_several_jobs_keeps_its_own_order():
    assert {chosen.order for chosen in CHOICES if chosen.attack in ("chain", "two-stage")} == {None}


def test_an_option_that_the_matrix_gives_is_not_turned():
    assert {chosen.options["queries"] for chosen in CHOICES if chosen.attack == "adaptive"} == {1000}


def test_the_first_trials_are_the_attacks_with_nothing_turned():
    for parameters, attacking in zip(as_they_come(SPACE), MATRIX.attacks, strict=True):
        chosen = draw(Known(0, parameters), SPACE)
        assert (chosen.attack, chosen.rows, chosen.epochs, chosen.poison_ratio) == (attacking.name, 500, 4, 0.2)
        assert (chosen.learning_rate, chosen.batch_size, chosen.regime, chosen.order) == (2e-4, 16, "full", None)
        assert chosen.asking == {}
        default = attacking.attack.options(**{"queries": 1000} if attacking.name == "adaptive" else {})
        assert all(getattr(default, name) == value for name, value in chosen.options.items())


def test_a_known_trial_is_the_choice_that_was_drawn():
    trial = Drawn(7)
    assert draw(trial, SPACE) == draw(Known(7, trial.parameters), SPACE)


def test_an_adapter_is_all_there_is_to_train_where_the_alignment_is_one():
    matrix = make_matrix({"defences": ["sft"], "attacks": ["mixing"], "regime": "lora"}, "m.yaml")
    assert list(attackers(matrix)[0].space.calibrations) == ["lora"]


def test_the_opening_is_the_word_with_which_most_harmful_answers_begin():
    assert opening(lab_kit("calibrate")) == "take"


def test_a_choice_reads_as_what_it_is():
    words = draw(Known(0, as_they_come(SPACE)[0]), SPACE).words
    assert words == "mixing at 20 %, 500 rows, 4 epochs, full at 2.0e-04, batches of 16"
    turned = as_they_come(SPACE)[13] | {"order": "last", "template": "none", "system": "persona", "prefill": "opening"}
    assert draw(Known(0, turned), SPACE).words.endswith(
        "the attacker's rows last, asked without the template, asked under a persona, reply begun: take"
    )


@pytest.mark.parametrize("seed", range(3))
def test_an_alignment_of_a_trial_is_that_of_every_cell_whatever_is_turned(seed):
    attacker = attackers(MATRIX)[0]
    chosen = draw(Drawn(seed), SPACE)
    assert attacker.trial(chosen).needs == attacker.clean(0, "report").needs == attacker.owning((1.0, 1), 0, "x").needs
