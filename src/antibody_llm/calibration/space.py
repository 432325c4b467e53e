"""What is searched of each defence: the options that decide harm against help, with the range of each.

A first trial has the defaults of the defence, which are the paper's. What is not listed keeps its default. Of a
fine-tuning defence, learning rate and epochs are the user's, and are simulated rather than searched.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from ..data.roles import Stage
from ..defences.catalogue import CATALOGUE
from ..errors import ConfigError
from ..parsing import nearest
from ..searching import Trial
from ..settings import plain
from ..text import quoted

VERSION = 1
"""Raised where a name or a range below changes: a study cannot go on with others."""


@dataclass(frozen=True)
class Number:
    """A range, both ends included."""

    low: float
    high: float
    log: bool = True
    whole: bool = False


@dataclass(frozen=True)
class OneOf:
    """Several values."""

    values: tuple[str | float, ...]


Range = Number | OneOf
TRAINING = "training."
"""How the name of a trainer's argument begins, among those of a defence's options."""

_TAU: Mapping[str, Range] = {"tau": Number(0.02, 2.0)}
_TRAINED: Mapping[str, Range] = {
    "training.learning_rate": Number(2e-5, 2e-3),
    "training.num_train_epochs": Number(1, 6, log=False, whole=True),
}
_TRAINED_FIRST = {"training.learning_rate": 2e-4, "training.num_train_epochs": 3}
"""The trainer's arguments of the first trial of an alignment: papers name them for models of one size."""

SPACES: Mapping[tuple[Stage, str], Mapping[str, Range]] = {
    (Stage.FINETUNING, "antibody"): {**_TAU, "loss_reduction": OneOf(("token", "sequence"))},
    (Stage.FINETUNING, "antibody-prescored"): _TAU,
    (Stage.FINETUNING, "antibody-posterior"): {
        "caution": Number(1.0, 3000.0),
        "rehearsal": Number(0.0, 0.3, log=False),
        "evidence": OneOf(("feature-shift", "shift", "refusal-feature")),
    },
    (Stage.FINETUNING, "bds"): {
        "scheduler": OneOf(("scalar", "neural")),
        "transform": OneOf(("softmax", "sigmoid")),
        "scheduler_lr": Number(1e-3, 0.3),
        "temperature": OneOf((0.0, 1.0)),  # the posterior's mode, as released, and the posterior
    },
    (Stage.FINETUNING, "lisa"): {
        "num_alignment_steps": Number(1, 100, whole=True),
        "num_user_steps": Number(1, 900, whole=True),
        "rho": Number(1e-3, 3.0),
    },
    (Stage.FINETUNING, "ewc"): {"lam": Number(1e-4, 1e2)},
    (Stage.ALIGNMENT, "sft"): _TRAINED,
    (Stage.ALIGNMENT, "antibody"): {
        "alpha": Number(0.01, 1.0),
        "eta": Number(0.1, 10.0),
        "lam2": Number(0.02, 5.0),
        **_TRAINED,
    },
    (Stage.ALIGNMENT, "booster"): {"lam": Number(0.05, 10.0), "alpha": Number(0.01, 1.0), **_TRAINED},
    (Stage.ALIGNMENT, "vaccine"): {"rho": Number(0.1, 10.0), **_TRAINED},
    (Stage.ALIGNMENT, "repnoise"): {"alpha": Number(0.02, 2.0), "beta": Number(1e-4, 1e-1), **_TRAINED},
}


@dataclass(frozen=True)
class Setting:
    """A defence's options and the trainer's arguments, all written out."""

    options: Mapping[str, Any]
    training: Mapping[str, Any]

    @property
    def words(self) -> str:
        """The searched values as a reader has them."""
        named = [*self.options.items(), *self.training.items()]
        return ", ".join(
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in named
        )


def find_space(stage: Stage, defence: str) -> Mapping[str, Range]:
    """What is searched of a defence.

    Raises:
        ConfigError: nothing is; the nearest name is offered.
    """
    if (stage, defence) not in SPACES:
        names = [name for of, name in SPACES if of is stage]
        raise ConfigError(
            f"{quoted(defence)}: there is nothing to search in the {stage} stage{nearest(defence, names)} What can be "
            f"searched: {', '.join(names)}.",
            field="defence",
        )
    return SPACES[stage, defence]


def draw(trial: Trial, space: Mapping[str, Range]) -> Setting:
    """The setting of a trial: numbers to three digits, so that a preset reads well."""
    return split({name: _drawn(trial, name, each) for name, each in space.items()})


def split(values: Mapping[str, Any]) -> Setting:
    """The setting that searched values make."""
    training = {name.removeprefix(TRAINING): value for name, value in values.items() if name.startswith(TRAINING)}
    return Setting({name: value for name, value in values.items() if not name.startswith(TRAINING)}, training)


def defaults(stage: Stage, defence: str) -> dict[str, Any]:
    """The searched values as the defence has them by default, those of the first trial."""
    given = all_options(stage, defence) | _TRAINED_FIRST
    return {name: given[name] for name in find_space(stage, defence)}


def all_options(stage: Stage, defence: str) -> dict[str, Any]:
    """Every option of a defence, at its default."""
    options: Any = CATALOGUE[stage, defence].options
    return {field.name: plain(field.default) for field in fields(options) if field.default is not MISSING}


def _drawn(trial: Trial, name: str, each: Range) -> Any:
    if isinstance(each, OneOf):
        return trial.suggest_categorical(name, list(each.values))
    if each.whole:
        return trial.suggest_int(name, int(each.low), int(each.high), log=each.log)
    return float(f"{trial.suggest_float(name, each.low, each.high, log=each.log):.3g}")
