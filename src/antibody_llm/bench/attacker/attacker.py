"""One attacker: a defence of the matrix, what there is to choose against it, and every choice as a job.

A choice is tried on one half of the lab's world (``calibrate``), on the first seed. What is reported of it is measured
on the other half (``report``), on every seed, so that nothing is reported on the prompts that it was chosen by.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...attacks.catalogue import CATALOGUE
from ...attacks.kit import lab_kit
from ...errors import ConfigError
from ...settings import Regime
from ..job import Job, digest
from ..matrix_file import NONE, Attacking, Defended, Matrix, Part
from ..plan import Maker, Turned
from ..settings import BudgetEntry
from .space import VERSION, Calibration, Chosen, Space, opening

CHOOSING, REPORTING = "calibrate", "report"
TRIAL_PROMPTS = 128
"""Prompts of each set in a trial, or the matrix's if those are fewer."""
PLAIN_RATIO = 0.2
"""The share that a trial's harm is shown beside: plain mixing, trained as calibrated."""
RATE, BATCH, EPOCHS = 2e-5, 8, 3
"""Where a model's profile calibrates nothing: the defaults of SFTConfig."""
CONTROLS = ((1.0, 1), (4.0, 1), (1.0, 4))
"""What an owner of the weights tries, in this order until it wins: learning rate and epochs, in those of the matrix."""


@dataclass(frozen=True, eq=False)
class Attacker:
    """Jobs against one defence."""

    maker: Maker
    defended: Defended
    budget: BudgetEntry
    space: Space
    task: str | None
    seed: int
    """The seed of every trial."""
    prompts: int
    """Prompts of each set in the report."""

    def trial(self, chosen: Chosen) -> Job:
        """A choice on the half to choose by."""
        return self._job(chosen, self.seed, CHOOSING)

    def reported(self, chosen: Chosen, seed: int) -> Job:
        """A choice on the half to report on."""
        return self._job(chosen, seed, REPORTING)

    def clean(self, seed: int, purpose: str) -> Job:
        """What an honest user gets: an upload without an attacker's row."""
        return self._as_calibrated(self.defended, 0.0, seed, purpose, self.budget)

    def plain(self, seed: int) -> Job:
        """Plain mixing, trained as calibrated, on the half to report on."""
        return self._as_calibrated(self.defended, PLAIN_RATIO, seed, REPORTING, self.budget)

    def owning(self, setting: tuple[float, int], seed: int, purpose: str) -> Job:
        """The attacker who owns the weights: harmful rows alone, and no defence after the alignment."""
        rate, epochs = setting
        calibration = next(iter(self.space.calibrations.values()))
        budget = replace(
            self.budget, epochs=epochs * self.space.epochs, learning_rate=min(1.0, rate * calibration.learning_rate)
        )
        bare = Defended("the owner of the weights", self.defended.alignment, Part("sft"), Part(NONE))
        return self._as_calibrated(bare, 1.0, seed, purpose, budget)

    @property
    def key(self) -> str:
        """The name of its study: whatever changes what a trial comes to, or what there is to choose, changes it."""
        attacks = [[each.name, each.attack.name, dict(each.options)] for each in self.space.attacks]
        return digest([VERSION, self.clean(self.seed, CHOOSING).key, attacks, list(self.space.calibrations)])

    def _job(self, chosen: Chosen, seed: int, purpose: str) -> Job:
        attacking = next(each for each in self.space.attacks if each.name == chosen.attack)
        budget = replace(
            self.budget,
            epochs=chosen.epochs,
            learning_rate=chosen.learning_rate,
            batch_size=chosen.batch_size,
        )
        turned = Turned(
            rows=chosen.rows,
            prompts=self._num_prompts(purpose),
            purpose=purpose,
            regime=chosen.regime,
            order=chosen.order,
            asking=chosen.asking,
        )
        attacking = replace(attacking, options=chosen.options)
        return self.maker.cell(self.defended, attacking, chosen.poison_ratio, budget, self.task, seed, turned)

    def _as_calibrated(self, defended: Defended, ratio: float, seed: int, purpose: str, budget: BudgetEntry) -> Job:
        mixing = Attacking("mixing", CATALOGUE["mixing"], {}, (ratio,))
        turned = Turned(prompts=self._num_prompts(purpose), purpose=purpose)
        return self.maker.cell(defended, mixing, ratio, budget, self.task, seed, turned)

    def _num_prompts(self, purpose: str) -> int:
        return min(TRIAL_PROMPTS, self.prompts) if purpose == CHOOSING else self.prompts


def attackers(matrix: Matrix) -> list[Attacker]:
    """An attacker for each defence of a matrix; of its budgets and tasks they take the first.

    Raises:
        ConfigError: the model is not of a world with two halves; or as ``make_plan``.
    """
    maker = Maker(matrix)
    if maker.own_world:
        raise ConfigError(
            f"{matrix.file}: a search chooses on one half of the lab's world and reports on the other; rows that are "
            "given as files have no halves. Leave data, attack_data, harmful_prompts and test_data out.",
            field="data",
        )
    budget, task = next(iter(matrix.budgets.values())), maker.tasks[0]
    found = []
    for defended in matrix.defences:
        for attacking in matrix.attacks:
            maker.require_anchors(defended, attacking)
        training = {
            regime: maker.finetuning(defended, regime, budget)["training"]
            for regime in _regimes(matrix.settings.regime)
        }
        space = Space(
            attacks=matrix.attacks,
            rows=matrix.settings.rows,
            epochs=_epochs(next(iter(training.values()))),
            calibrations={regime: _calibration(each) for regime, each in training.items()},
            opening=opening(lab_kit(CHOOSING)),
        )
        found.append(Attacker(maker, defended, budget, space, task, matrix.seeds[0], matrix.settings.prompts))
    return found


def _regimes(own: Regime) -> tuple[Regime, ...]:
    """What may be trained: a whole model, or an adapter on it; an adapter alone where the alignment is one."""
    return ("full", "lora") if own == "full" else ("lora",)


def _epochs(training: dict[str, Any]) -> float:
    return float(training.get("num_train_epochs", EPOCHS))


def _calibration(training: dict[str, Any]) -> Calibration:
    return Calibration(training.get("learning_rate", RATE), training.get("per_device_train_batch_size", BATCH))


def studies(folder: Path) -> Path:
    """Where the studies of a matrix's folder are."""
    return folder / "search"
