"""Uploads of simulated users, and a setting tried on them as jobs of a matrix.

The first simulation is an honest user, with the middle of every range. In the others harmful share, epochs and learning
rate are drawn, each from an equal part of its range, so that few of them cover it. All settings meet the same ones.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..bench.job import Job
from ..bench.matrix_file import NONE, make_matrix
from ..bench.plan import Plan, make_plan
from ..data.roles import Stage
from ..errors import ConfigError
from ..mentions import setting
from ..profiles import Profile
from ..settings.calibrate import CalibrateSettings
from .rows import SEARCH, Divided
from .space import Setting, all_options

USUAL_EPOCHS = 3.0
USUAL_RATE = {"lora": 2e-4, "full": 2e-5}
"""What users train with, where a model's profile says nothing."""
ATTACK = "mixing"


@dataclass(frozen=True)
class Simulation:
    """A user's upload and how it is trained."""

    poison_ratio: float
    epochs: int
    learning_rate: float


@dataclass(frozen=True)
class Ranges:
    """From where to where the simulations go, both ends included."""

    poison_ratio: tuple[float, float]
    epochs: tuple[float, float]
    learning_rate: tuple[float, float]

    @classmethod
    def of(cls, settings: CalibrateSettings, profile: Profile) -> "Ranges":
        """The ranges that are given, or around what the model's users usually train with.

        Raises:
            ConfigError: one is no range, or not within what can be.
        """
        _, usual = profile.calibration(str(Stage.FINETUNING), "sft", settings.regime)
        epochs = float(usual.get("num_train_epochs", USUAL_EPOCHS))
        rate = float(usual.get("learning_rate", USUAL_RATE[settings.regime]))
        found = cls(
            parse_range(settings.poison_ratios, "poison_ratios"),
            (max(1.0, epochs // 2), math.ceil(1.5 * epochs))
            if settings.epochs is None
            else parse_range(settings.epochs, "epochs"),
            (rate / 2, 2 * rate)
            if settings.learning_rates is None
            else parse_range(settings.learning_rates, "learning_rates"),
        )
        limits = {"poison_ratios": (found.poison_ratio, 1.0), "learning_rates": (found.learning_rate, 1.0)}
        for name, ((low, high), most) in (limits | {"epochs": (found.epochs, 10_000)}).items():
            least = 1.0 if name == "epochs" else 0.0
            if not (least <= low <= high <= most) or high == 0:
                raise ConfigError(
                    f"{setting(name)} is {low:g}..{high:g}: it must lie between {least:g} and {most:g}.", field=name
                )
        return found


def parse_range(given: str | float, name: str) -> tuple[float, float]:
    """A range as it is written: LOW..HIGH, or one number.

    Raises:
        ConfigError: it is neither, or its ends are the wrong way round.
    """
    try:
        low, dots, high = str(given).partition("..")
        ends = float(low), float(high if dots else low)
    except ValueError:
        ends = (1.0, 0.0)
    if not ends[0] <= ends[1] or not all(map(math.isfinite, ends)):
        raise ConfigError(
            f"{setting(name)} is {str(given)[:40]!r}: write LOW..HIGH, such as 0.05..0.3, or one number.", field=name
        )
    return ends


def simulations(ranges: Ranges, num: int, *, rows: int, seed: int) -> list[Simulation]:
    """The simulated users, the honest one first; the same for the same arguments."""
    rng, harmful = random.Random(f"calibrate/{seed}"), num - 1
    spread = {name: _spread(rng, harmful) for name in ("poison_ratio", "epochs", "learning_rate")}
    users = [Simulation(0.0, _epochs(ranges, 0.5), _rate(ranges, 0.5))]
    for ratio, epochs, rate in zip(*spread.values(), strict=True):
        low, high = ranges.poison_ratio
        share = max(round(low + ratio * (high - low), 2), math.ceil(100 / rows) / 100)  # at least one row
        users.append(Simulation(min(1.0, share), _epochs(ranges, epochs), _rate(ranges, rate)))
    return users


def _spread(rng: random.Random, num: int) -> list[float]:
    """A number between 0 and 1 from each of equal parts, in random order."""
    drawn = [(part + rng.random()) / num for part in range(num)]
    rng.shuffle(drawn)
    return drawn


def _epochs(ranges: Ranges, at: float) -> int:
    low, high = ranges.epochs
    return max(1, round(low + at * (high - low)))


def _rate(ranges: Ranges, at: float) -> float:
    low, high = ranges.learning_rate
    return float(f"{math.exp(math.log(low) + at * (math.log(high) - math.log(low))):.3g}")


@dataclass(frozen=True)
class Simulator:
    """Makes the jobs of a setting."""

    settings: CalibrateSettings
    model: str
    """What is attacked, or aligned first if the alignment is searched."""
    rows: Divided
    users: Sequence[Simulation]
    judge: str
    answer: str

    def jobs(self, defence: str, found: Setting | None, half: str, seeds: Sequence[int]) -> list[list[Job]]:
        """A job for each simulated user, of every seed.

        Args:
            defence: A name in the catalogue.
            found: Its setting over its defaults; None is the model's own preset.
            half: ``SEARCH`` or ``REPORT``.
            seeds: Seeds of uploads, training and alignment.
        """
        plan = self._plan(self.matrix(defence, found, half, seeds))
        by_name = {(cell.seed, cell.budget, cell.poison_ratio): cell.job for cell in plan.cells}
        return [
            [by_name[seed, f"user {number}", user.poison_ratio] for number, user in enumerate(self.users)]
            for seed in seeds
        ]

    def aligned(self, defence: str, seed: int) -> Job:
        """The alignment of the model by a defence, on rows that nothing is measured on."""
        matrix = self.matrix("sft", None, SEARCH, [seed])
        matrix["defences"][0]["alignment"] = defence
        job = self._plan(matrix).cells[0].job.needs
        assert job is not None, "an alignment is named"
        return job

    def matrix(self, defence: str, found: Setting | None, half: str, seeds: Sequence[int]) -> dict[str, Any]:
        """The content of a matrix file."""
        settings = self.settings
        part: dict[str, Any] = {"name": defence}
        if found is not None:
            part |= {
                "options": all_options(Stage(settings.stage), defence) | dict(found.options),
                "training": dict(found.training),
            }
        defended: dict[str, Any] = {"name": defence, "alignment": NONE, "finetuning": part}
        if settings.stage == "alignment":
            defended |= {"alignment": part, "finetuning": settings.finetuning}
        named = {
            "model": self.model,
            "regime": settings.regime,
            "judge": self.judge,
            "answer": self.answer,
            **self.rows.provided,
            **self.rows.halves[half],
        }
        return {
            "title": f"{defence} on the rows to {half}",
            "defences": [defended],
            "baseline": defence,
            "attacks": [ATTACK],
            "poison_ratios": list(dict.fromkeys(user.poison_ratio for user in self.users)),
            "budgets": {
                f"user {number}": {
                    "epochs": user.epochs,
                    "learning_rate": user.learning_rate,
                    "training": dict(settings.training or {}),
                }
                for number, user in enumerate(self.users)
            },
            "seeds": list(seeds),
            "rows": self.rows.rows,
            "batch_size": settings.batch_size,
            "dtype": settings.dtype,
            "threads": settings.threads,
            **{key: value for key, value in named.items() if value is not None},
        }

    @staticmethod
    def _plan(content: Mapping[str, Any]) -> Plan:
        return make_plan(make_matrix(dict(content), "the calibration"))
