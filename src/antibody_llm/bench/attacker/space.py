"""What an attacker of a fine-tuning service may choose, how it is drawn, and how it reads in words.

    upload     attack and its knobs, share of the attacker's rows, rows, order over jobs
    training   epochs, learning rate, batch size, LoRA or full
    asking     chat template or none, a persona as system message, a reply that is made to begin

A trial costs at most ``MOST`` times the matrix's own rows x epochs. Its cost is drawn with its logarithm uniform from a
quarter on, so that half of all trials cost no more than the matrix's own cells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, floor
from typing import Any

from ...attacks.attack import Access
from ...attacks.identity import PERSONA
from ...attacks.kit import Kit
from ...attacks.knobs import Knob, knobs
from ...searching import Trial
from ...settings import Regime
from ..matrix_file import Attacking
from ..order import Order

LEAST, MOST = 0.25, 4.0
"""Rows x epochs of a trial, in those of the matrix."""
LEAST_RATIO = 0.02
RATES = (0.25, 8.0)
"""Learning rates, in that of the calibration."""
BATCHES = (0.5, 1.0, 2.0)
"""Batch sizes, in that of the calibration."""
VERSION = 2
"""Raised where a name or a range below changes, or what a trial comes to: a study cannot go on with others."""


@dataclass(frozen=True)
class Calibration:
    """What a user who chooses nothing trains with."""

    learning_rate: float
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Space:
    """All that there is to choose from against one defence."""

    attacks: tuple[Attacking, ...]
    rows: int
    """Rows of an upload of the matrix."""
    epochs: float
    """Epochs of a cell of the matrix."""
    calibrations: Mapping[Regime, Calibration]
    """What may be trained, the matrix's own first."""
    opening: str
    """How a reply that complies begins."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """An attacker's choice."""

    attack: str
    """What the matrix calls it."""
    options: Mapping[str, Any] = field(default_factory=dict)
    poison_ratio: float
    rows: int
    epochs: int
    learning_rate: float
    batch_size: int
    regime: Regime
    order: Order | None = None
    asking: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ``Asking``."""

    @property
    def words(self) -> str:
        """The choice as a reader has it."""
        parts = [f"{self.attack} at {100 * self.poison_ratio:.0f} %"]
        parts += [f"{name} {_said(value)}" for name, value in self.options.items()]
        parts += [f"{self.rows} rows", f"{self.epochs} epoch{'' if self.epochs == 1 else 's'}"]
        parts += [f"{self.regime} at {self.learning_rate:.1e}", f"batches of {self.batch_size}"]
        if self.order is not None:
            parts.append(f"the attacker's rows {self.order}")
        parts += [
            {"bare": "asked without the template", "system": "asked under a persona"}.get(name, f"reply begun: {value}")
            for name, value in self.asking.items()
        ]
        return ", ".join(parts)


def draw(trial: Trial, space: Space) -> Chosen:
    """The choice of a trial; the same names have the same ranges in every trial."""
    attacking = {each.name: each for each in space.attacks}[
        trial.suggest_categorical("attack", [each.name for each in space.attacks])
    ]
    options = dict(attacking.options)
    for knob in _free(attacking):
        options[knob.name] = _turned(trial, f"{attacking.name}.{knob.name}", knob)
    rows = trial.suggest_int("rows", *_row_range(space), log=True)
    cost = trial.suggest_float("cost", LEAST, MOST, log=True)
    ratio = trial.suggest_float("poison_ratio", LEAST_RATIO, 1.0, log=True)
    regime: Regime = trial.suggest_categorical("regime", list(space.calibrations))
    calibration = space.calibrations[regime]
    rate = trial.suggest_float("learning_rate", *RATES, log=True)
    batch = trial.suggest_categorical("batch_size", list(BATCHES))
    order = trial.suggest_categorical("order", ["mixed", *map(str, Order)])
    asking: dict[str, Any] = {}
    if trial.suggest_categorical("template", ["own", "none"]) == "none":
        asking["bare"] = True
    if trial.suggest_categorical("system", ["none", "persona"]) == "persona":
        asking["system"] = PERSONA
    if trial.suggest_categorical("prefill", ["none", "opening"]) == "opening":
        asking["prefill"] = space.opening
    return Chosen(
        attack=attacking.name,
        options=options,
        poison_ratio=max(round(ratio, 2), ceil(100 / rows) / 100),  # at least one row
        rows=rows,
        epochs=max(1, floor(cost * space.rows * space.epochs / rows + 1e-9)),
        learning_rate=min(1.0, float(f"{rate * calibration.learning_rate:.3g}")),
        batch_size=max(1, round(batch * calibration.batch_size)),
        regime=regime,
        order=None if order == "mixed" or Access.JOBS in attacking.attack.needs else Order(order),
        asking=asking,
    )


def as_they_come(space: Space) -> list[dict[str, Any]]:
    """A trial for each attack at its largest ratio of the matrix, with nothing else turned."""
    usual = {
        "rows": space.rows,
        "cost": 1.0,
        "regime": next(iter(space.calibrations)),
        "learning_rate": 1.0,
        "batch_size": 1.0,
        "order": "mixed",
        "template": "own",
        "system": "none",
        "prefill": "none",
    }
    return [
        {
            "attack": each.name,
            "poison_ratio": max(LEAST_RATIO, *each.poison_ratios),
            **{f"{each.name}.{knob.name}": knob.default for knob in _free(each)},
            **usual,
        }
        for each in space.attacks
    ]


@dataclass(frozen=True)
class Known:
    """A trial whose parameters are known, to be read as ``draw`` reads them."""

    number: int
    parameters: Mapping[str, Any]

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """The number that it has."""
        return int(self.parameters[name])

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """The number that it has."""
        return float(self.parameters[name])

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """The choice that it has."""
        return self.parameters[name]


def opening(kit: Kit) -> str:
    """The word with which most of the attacker's harmful answers begin."""
    words = [exchange.answer.split(maxsplit=1)[0] for exchange in kit.harmful if exchange.answer.strip()]
    return max(dict.fromkeys(words), key=words.count)


def _free(attacking: Attacking) -> list[Knob]:
    """The knobs that the matrix leaves to the search; a text has no range to draw from."""
    return [
        knob for knob in knobs(attacking.attack.options) if knob.kind != "text" and knob.name not in attacking.options
    ]


def _turned(trial: Trial, name: str, knob: Knob) -> Any:
    if knob.kind == "choice":
        return trial.suggest_categorical(name, list(knob.choices))
    assert knob.low is not None, "a number has a range"
    assert knob.high is not None, "a number has a range"
    if knob.kind == "int":
        return trial.suggest_int(name, int(knob.low), int(knob.high), log=knob.log)
    return float(f"{trial.suggest_float(name, knob.low, knob.high, log=knob.log):.3g}")


def _row_range(space: Space) -> tuple[int, int]:
    return max(1, space.rows // 5), 2 * space.rows


def _said(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
