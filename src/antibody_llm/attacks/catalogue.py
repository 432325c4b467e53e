"""Every attack by name: a line each."""

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from ..parsing import nearest, parse_options
from ..text import quoted
from . import (
    adaptive,
    answers,
    backdoor,
    benign_outliers,
    buried,
    chain,
    covert,
    embedded,
    few_shot,
    forged_turns,
    frame,
    identity,
    jailbreak_tuning,
    mixing,
    noice,
    pointwise,
    preferences,
    two_stage,
)
from .attack import Attack, Crafted, Means

CATALOGUE: dict[str, Attack] = {
    "mixing": mixing.ATTACK,
    "few-shot": few_shot.ATTACK,
    "frame": frame.ATTACK,
    "buried": buried.ATTACK,
    "answers": answers.ATTACK,
    "embedded": embedded.ATTACK,
    "forged-turns": forged_turns.ATTACK,
    "jailbreak-tuning": jailbreak_tuning.ATTACK,
    "noice": noice.ATTACK,
    "identity-shifting": identity.ATTACK,
    "benign-outliers": benign_outliers.ATTACK,
    "covert": covert.ATTACK,
    "pointwise": pointwise.ATTACK,
    "backdoor": backdoor.ATTACK,
    "adaptive": adaptive.ATTACK,
    "two-stage": two_stage.ATTACK,
    "chain": chain.ATTACK,
    "reverse-dpo": preferences.REVERSE_DPO,
    "poisoned-pairs": preferences.POISONED_PAIRS,
}


def find_attack(name: str) -> Attack:
    """The attack of a name.

    Raises:
        ConfigError: there is none; offers the nearest name.
    """
    if name not in CATALOGUE:
        listed = ", ".join(CATALOGUE)
        raise ConfigError(f"no attack is called {quoted(name)}{nearest(name, CATALOGUE)} There are: {listed}.")
    return CATALOGUE[name]


def craft(name: str, means: Means, options: Mapping[str, Any] | None = None) -> Crafted:
    """What an attack uploads, and how its result is asked.

    Args:
        name: In the catalogue.
        means: What the attacker works with.
        options: The attack's knobs by name, as parsed from YAML or as strings from the command line.

    Raises:
        ConfigError: no such attack or option, or a value outside its range.
        DataError: too few rows to attack with.
    """
    attack = find_attack(name)
    return attack.craft(means, parse_options(attack.options, name, options or {}, group="options"))
