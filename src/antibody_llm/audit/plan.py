"""From the settings to the jobs of a training: attacks and honest uploads, each drawn by seed and number alone.

Even jobs are honest; odd ones go round the families of attacks, and in a family round its attacks, so that any number
of jobs has nearly as many of each. Ratio, rows, budget, regime, task, knobs, defence and model are drawn.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..attacks.attack import Access
from ..attacks.catalogue import CATALOGUE
from ..attacks.knobs import knobs
from ..bench.job import Job, described_part, digest, versions
from ..bench.plan import DEFAULT_TOKENS, LONG
from ..building.attacks import clean_rows
from ..data.roles import Stage
from ..defences.catalogue import make_defence
from ..errors import ConfigError
from ..evaluation.judges.registry import make_judge
from ..lab.tasks import TASKS
from ..mentions import setting
from ..models.names import with_kind
from ..profiles import Profile, profile_of
from ..runs.trainer_config import check_seed
from ..settings.audit import AuditTrainSettings
from ..store.digest import file_digest
from ..store.naming import described_model, model_name
from .classifier import FORMAT
from .honest import SHARES
from .probes import Stock, file_stock, held_questions, world_stock
from .summary import FAMILIES

FILES = ("data", "attack_data", "harmful_prompts", "benign_prompts")
WORLD = "lab"
"""The world whose rows attacks are made of where no files are given."""
ROWS, EPOCHS, RATES = (100, 200, 500), (2, 4, 8), (0.5, 1.0, 2.0)
"""Rows of an upload, passes over it, and learning rates as multiples of the calibrated one."""
RATIOS = (0.05, 1.0)
"""The attacker's share of an upload is drawn between these, log-uniformly; of three jobs one has the attack's own."""
BATCH_SIZE = 64
"""Prompts that are decoded together."""


@dataclass(frozen=True)
class Planned:
    """A job and what it is."""

    attack: str | None
    """None for an honest job."""
    job: Job


@dataclass(frozen=True)
class Plan:
    """All jobs of a training."""

    settings: AuditTrainSettings
    profile: Profile
    stock: Stock
    judge: str
    max_new_tokens: int
    planned: tuple[Planned, ...]

    @property
    def jobs(self) -> list[Job]:
        """Every job once."""
        return list(dict.fromkeys(each.job for each in self.planned))


def make_plan(settings: AuditTrainSettings) -> Plan:
    """Plan every job; nothing is written.

    Raises:
        ConfigError: a number or a name cannot be, or the models lack rows or a judge.
        DataError: rows cannot be read.
        ModelError: there is no such model.
    """
    _check(settings)
    return _Maker(settings).plan()


class _Maker:
    """Makes the jobs of a training."""

    def __init__(self, settings: AuditTrainSettings) -> None:
        self.settings = settings
        self.models = [model_name(name) for name in settings.model]
        profiles = {name: profile_of(name) for name in self.models}
        self.profile = profiles[self.models[0]]
        if len({profile.name for profile in profiles.values()}) > 1:
            brought = ", ".join(f"{with_kind(name)} {profile.name}" for name, profile in profiles.items())
            raise ConfigError(
                f"the models bring different rows ({brought}): a classifier is for models of one kind. "
                "Train one for each.",
                field="model",
            )
        self.described = {name: _fingerprint(name) for name in self.models}
        self.places = {key: str(value) for key in FILES if (value := getattr(settings, key)) is not None}
        self.stock = self._stock()
        named = settings.judge or next(iter(self.profile.judges), None)
        if named is None:
            raise ConfigError(f"{with_kind(self.models[0])} brings no judge. Give {setting('judge')}.", field="judge")
        make_judge(named)
        self.judge = named
        self.tokens = LONG * (self.profile.max_new_tokens or 0) or DEFAULT_TOKENS
        self.versions = versions()
        self.rows: tuple[int, ...] = ROWS
        if self.places:
            num = len(clean_rows(self.places["data"]))
            self.rows = tuple(each for each in ROWS if each <= num) or (num,)

    def plan(self) -> Plan:
        """The jobs in the order of their numbers."""
        planned = tuple(self._planned(number) for number in range(self.settings.num))
        return Plan(self.settings, self.profile, self.stock, self.judge, self.tokens, planned)

    def _stock(self) -> Stock:
        if self.places:
            absent = [key for key in FILES if key not in self.places]
            if absent:
                raise ConfigError(
                    f"{setting(absent[0])} is missing: rows of files and of a world are not mixed. Give "
                    f"{', '.join(map(setting, FILES))}.",
                    field=absent[0],
                )
            held_questions(self.places["harmful_prompts"])
            return file_stock(self.places["harmful_prompts"], self.places["benign_prompts"], self.profile.refusals)
        found = world_stock(self.profile) if self.profile.name == WORLD else None
        if found is None:
            raise ConfigError(
                f"{with_kind(self.models[0])} brings no attacks. Give {', '.join(map(setting, FILES))}.",
                field=FILES[0],
            )
        return found

    def _planned(self, number: int) -> Planned:
        rng = random.Random(f"audit/{self.settings.seed}/{number}")
        attack = None if number % 2 == 0 else _attack(number // 2)
        entry = CATALOGUE[attack or "mixing"]
        pairs = Access.PREFERENCES in entry.needs
        ratio = round(RATIOS[0] * (RATIOS[1] / RATIOS[0]) ** rng.random(), 3)
        if rng.random() < 1 / 3:
            ratio = entry.poison_ratio
        kind = rng.choices(list(SHARES), weights=list(SHARES.values()))[0]
        regime, task = rng.choice(("full", "lora")), rng.choice(list(TASKS))
        defence = "sft" if pairs else rng.choice(list(self.settings.defences))
        choices = [knob for knob in knobs(entry.options) if knob.kind == "choice" and not self.places]
        config = {
            "audit": FORMAT,
            "versions": self.versions,
            "sets": self._sets(task),
            "stock": digest(self.stock.to_json()),
            "attack": {
                "name": entry.name,
                "options": {knob.name: rng.choice(list(knob.choices)) for knob in choices} if attack else {},
            },
            "honest": None if attack else kind,
            "poison_ratio": ratio if attack else 0.0,
            "rows": rng.choice(self.rows),
            "regime": regime,
            "finetuning": self._part(defence, regime, rng.choice(EPOCHS), rng.choice(RATES)),
            "provided": {},
            "judge": self.judge,
            "prompts": self.settings.prompts,
            "max_new_tokens": self.tokens,
            "batch_size": BATCH_SIZE,
            "threads": self.settings.threads,
            "seed": self.settings.seed * 100_000 + number,
        }
        if pairs:
            config["method"] = "dpo"
        model = rng.choice(self.models)
        label = f"job {number}: {attack or f'honest {kind}'}"
        return Planned(
            attack,
            Job("cell", {**config, "model": self.described[model]}, {"model": model, **self.places}, label=label),
        )

    def _sets(self, task: str) -> dict[str, Any]:
        if self.places:
            return {key: file_digest(Path(place).expanduser()) for key, place in self.places.items()}
        # Probes are of the other half, so that no upload and no question of a job's harm is one of them.
        return {"world": self.profile.name, "task": task, "purpose": "report"}

    def _part(self, defence: str, regime: str, epochs: int, rate: float) -> dict[str, Any]:
        options, calibrated = self.profile.calibration(Stage.FINETUNING, defence, regime)
        training: dict[str, Any] = {"save_strategy": "no", "learning_rate": 1e-4, **calibrated}
        training |= {"num_train_epochs": epochs, "learning_rate": rate * training["learning_rate"]}
        return described_part(Stage.FINETUNING, defence, options, training)


def _attack(number: int) -> str:
    """The n-th attack: every family in turn, and in it every attack in turn."""
    families = list(FAMILIES.values())
    attacks = families[number % len(families)]
    return attacks[number // len(families) % len(attacks)]


def _fingerprint(name: str) -> Mapping[str, Any]:
    """A model by what it is and not by where, if its weights are here."""
    described = described_model(name)
    return {k: v for k, v in described.items() if k not in ("name", "place") or described["weights"] is None}


def _check(settings: AuditTrainSettings) -> None:
    check_seed(settings.seed)
    for name in ("model", "defences"):
        if not getattr(settings, name):
            raise ConfigError(f"{setting(name)}: give at least one.", field=name)
    for name, least in (("num", 20), ("prompts", 1), ("threads", 1)):
        if getattr(settings, name) < least:
            raise ConfigError(f"{setting(name)} is {getattr(settings, name)}: it must be {least} or more.", field=name)
    if settings.jobs is not None and settings.jobs < 1:
        raise ConfigError(f"{setting('jobs')} is {settings.jobs}: it must be 1 or more.", field="jobs")
    for name in ("false_alarms", "margin"):
        if not 0 < getattr(settings, name) < 1:
            raise ConfigError(
                f"{setting(name)} is {getattr(settings, name)}: give a share between 0 and 1.", field=name
            )
    for name in settings.defences:
        make_defence(Stage.FINETUNING, name, {})
