"""From the settings to the jobs of the grid, each with every default written out.

    start     a model as it is: harm at step 0, and the measures of stability
    attack    harmful fine-tuning at one learning rate, number of rows, regime and seed, measured at log-spaced steps
    task      fine-tuning on a user's clean rows in one regime from one seed, for trainability

The configuration of a job names a model by its fingerprint, so that two folders of one model have one job.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..bench.job import Job, versions
from ..data.roles import Stage
from ..errors import ConfigError
from ..evaluation.judges.registry import make_judge
from ..lab.tasks import find_task
from ..mentions import setting
from ..models.names import with_kind
from ..profiles import profile_of
from ..settings import plain
from ..settings.immunization import ImmunizationSettings
from ..store.digest import file_digest
from ..store.naming import described_model, model_name
from ..text import quoted
from .rows import FILES, IN_DOMAIN, WORLDS, attack_rows, harmful_sets, reference_rows, task_rows

Which = Literal["model", "defended"]
Part = Literal["start", "attack", "task"]
REGIMES = ("full", "lora")
NEEDED = ("attack_data", "harmful_prompts")
"""The files that a model without rows of its own needs."""
TASK = ("data", "test_data")
"""Those that trainability needs besides."""
READ: Mapping[Part, tuple[str, ...]] = {
    "start": ("harmful_prompts", "cross_prompts", "benign_prompts", "test_data", "retention_data"),
    "attack": ("attack_data", "harmful_prompts", "cross_prompts"),
    "task": TASK,
}
"""The files that each kind of job reads."""
WARMUP = 0.1
"""Share of the steps over which a cosine schedule warms up."""
DEFAULT_TOKENS = 128
BATCH = 128
"""Prompts that are decoded together."""


@dataclass(frozen=True)
class Defaults:
    """The attacker's grid where the settings leave it open."""

    learning_rates: tuple[float, ...]
    rows: tuple[int, ...]
    steps: int
    task_steps: int
    batch_size: int = 16


WORLD_DEFAULTS = Defaults(learning_rates=(2e-4, 5e-4, 1e-3), rows=(16, 48, 96), steps=64, task_steps=128)
"""Those of a world, whose models are small. 96 are all of the attacker's questions in one half of the lab's world."""
DEFAULTS = Defaults(learning_rates=(3e-5, 1e-4, 3e-4), rows=(100, 1000), steps=512, task_steps=512)
"""Those of any other model. 3e-5 and 3e-4 are the rates of RepNoise's released attacks."""


@dataclass(frozen=True)
class Run:
    """A job by what the report calls it. Two of them may be one job."""

    which: Which
    part: Part
    job: Job
    regime: str = ""
    learning_rate: float = 0.0
    rows: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """All runs."""

    settings: ImmunizationSettings
    grid: Mapping[str, Any]
    """The settings with every default written out, for the report."""
    runs: tuple[Run, ...]

    @property
    def jobs(self) -> list[Job]:
        """Every job once."""
        return list(dict.fromkeys(run.job for run in self.runs))

    def of(self, which: Which, part: Part) -> list[Run]:
        """The runs of one model and kind."""
        return [run for run in self.runs if (run.which, run.part) == (which, part)]


def checkpoints(steps: int) -> list[int]:
    """1, 2, 3, 4, 5, 6, 8, 10, 12 and so on, three to an octave, and the last step."""
    found, octave = set[int](), 1
    while octave <= steps:
        found |= {octave, octave * 5 // 4, octave * 3 // 2}
        octave *= 2
    return sorted({step for step in found if step <= steps} | {steps})


def make_plan(settings: ImmunizationSettings) -> Plan:
    """Plan every run; nothing is written.

    Raises:
        ConfigError: a number cannot be, or the model lacks rows or a judge.
        DataError: rows cannot be read.
        ModelError: there is no such model.
    """
    return _Maker(settings).plan()


class _Maker:
    """Makes the jobs of the grid."""

    def __init__(self, settings: ImmunizationSettings) -> None:
        self.settings = settings
        named: dict[Which, str | Path | None] = {"model": settings.model, "defended": settings.defended}
        self.models: dict[Which, str] = {which: model_name(n) for which, n in named.items() if n is not None}
        profiles = {which: profile_of(name) for which, name in self.models.items()}
        self.profile = profiles["model"]
        self.own = any(getattr(settings, key) is not None for key in FILES)
        if not self.own and len({type(profile) for profile in profiles.values()}) > 1:
            raise ConfigError(
                f"{' and '.join(map(with_kind, self.models.values()))} bring different rows ({self.profile.name} and "
                f"{profiles['defended'].name}). Give two models of one world, or {setting('attack_data')}.",
                field="defended",
            )
        self.described = {which: described_model(name) for which, name in self.models.items()}
        self.grid = self._grid()
        self.places = {key: str(getattr(settings, key)) for key in FILES if getattr(settings, key) is not None}
        self.sets = self._sets()
        self.common = self._common()

    def plan(self) -> Plan:
        """Starts first, then attacks seed by seed, so that a run that is stopped has a bit of everything."""
        runs = [Run(which, "start", self._job(which, "start", {})) for which in self.models]
        with_task = "defended" in self.models and self.has_task
        for seed in range(self.settings.seeds):
            for regime in self.grid["regimes"]:
                if with_task:
                    runs += [self._task(which, regime, seed) for which in self.models]
                for rate in self.grid["learning_rates"]:
                    for rows in self.grid["rows"]:
                        runs += [self._attack(which, regime, rate, rows, seed) for which in self.models]
        grid = {**self.grid, "seeds": list(range(self.settings.seeds)), "margin": self.settings.margin}
        grid |= {key: self.common[key] for key in ("judge", "max_new_tokens", "threads")}
        grid |= {
            "prompts": self.settings.prompts,
            "task": self.task,
            "purpose": self.sets.get("purpose"),
            "checkpoints": checkpoints(grid["steps"]),
        }
        return Plan(self.settings, grid, tuple(runs))

    # -- jobs ----------------------------------------------------------------------------------------------------

    def _attack(self, which: Which, regime: str, rate: float, rows: int, seed: int) -> Run:
        training: dict[str, Any] = {
            "learning_rate": rate,
            "per_device_train_batch_size": min(self.grid["batch_size"], rows),
            "lr_scheduler_type": self.grid["schedule"],
            "warmup_steps": WARMUP if self.grid["schedule"] == "cosine" else 0,
            "weight_decay": 0.0,
        }
        config = {"regime": regime, "rows": rows, "seed": seed, "training": training | _budget(self.grid["steps"])}
        job = self._job(which, "attack", config, f"{rows} rows, {rate:g}, {regime}, seed {seed}")
        return Run(which, "attack", job, regime, rate, rows, seed)

    def _task(self, which: Which, regime: str, seed: int) -> Run:
        _, calibrated = self.profile.calibration(Stage.FINETUNING, "sft", regime)
        rates = sorted(self.grid["learning_rates"])
        default = {"learning_rate": rates[len(rates) // 2], "lr_scheduler_type": "constant"}
        training = {**default, "per_device_train_batch_size": self.grid["batch_size"], **calibrated}
        config = {"regime": regime, "seed": seed, "training": plain(training) | _budget(self.grid["task_steps"])}
        job = self._job(which, "task", config, f"clean task, {regime}, seed {seed}")
        return Run(which, "task", job, regime, training["learning_rate"], 0, seed)

    def _job(self, which: Which, part: Part, config: Mapping[str, Any], label: str = "as it is") -> Job:
        described = self.described[which]
        # Where a fingerprint says what a model is, its place does not matter.
        fingerprint = {
            key: value
            for key, value in described.items()
            if key not in ("name", "place") or described["weights"] is None
        }
        sets = {key: value for key, value in self.sets.items() if key in ("world", "purpose", *READ[part])}
        whole = {"immunization": part, "model": fingerprint, "sets": sets, **self.common, **config}
        if part != "task":
            whole |= {"prompts": self.settings.prompts}
        if part != "attack":
            whole |= {"task": self.task, "answer": self.settings.answer or self.profile.answer(self.task)}
        if part != "start":
            whole |= {"checkpoints": checkpoints(config["training"]["max_steps"])}
        return Job("cell", whole, {"model": self.models[which], **self.places}, label=f"{which}: {label}")

    # -- what all jobs share -------------------------------------------------------------------------------------

    def _common(self) -> dict[str, Any]:
        settings = self.settings
        named = settings.judge or next(iter(self.profile.judges), None)
        if named is None:
            raise ConfigError(
                f"{with_kind(self.models['model'])} brings no judge. Give {setting('judge')}.", field="judge"
            )
        make_judge(named)
        for name, value in (("prompts", settings.prompts), ("seeds", settings.seeds), ("threads", settings.threads)):
            if value < 1:
                raise ConfigError(f"{setting(name)} is {value}: it must be 1 or more.", field=name)
        if not 0 <= settings.margin < 1:
            raise ConfigError(f"{setting('margin')} is {settings.margin}: it must be 0 or more and below 1.")
        return {
            "versions": versions(),
            "judge": named,
            "max_new_tokens": settings.max_new_tokens or self.profile.max_new_tokens or DEFAULT_TOKENS,
            "lora": plain(dict(self.profile.adapter)),
            "threads": settings.threads,
        }

    def _grid(self) -> dict[str, Any]:
        settings = self.settings
        defaults = WORLD_DEFAULTS if self.profile.name in WORLDS else DEFAULTS
        grid: dict[str, Any] = {
            "learning_rates": _numbers("learning_rates", settings.learning_rates, defaults.learning_rates, float),
            "rows": _numbers("rows", settings.rows, defaults.rows, int),
            "regimes": list(dict.fromkeys(settings.regimes)),
            "steps": defaults.steps if settings.steps is None else settings.steps,
            "task_steps": defaults.task_steps if settings.task_steps is None else settings.task_steps,
            "batch_size": defaults.batch_size if settings.batch_size is None else settings.batch_size,
            "schedule": settings.schedule,
        }
        for name in ("steps", "task_steps", "batch_size"):
            if grid[name] < 1:
                raise ConfigError(f"{setting(name)} is {grid[name]}: it must be 1 or more.", field=name)
        if unknown := [regime for regime in grid["regimes"] if regime not in REGIMES] or not grid["regimes"]:
            shown = quoted(unknown[0]) if isinstance(unknown, list) else "none"
            raise ConfigError(f"{setting('regimes')}: {shown}: give {' or '.join(REGIMES)}, or both.", field="regimes")
        return grid

    def _sets(self) -> dict[str, Any]:
        """What the rows are: a world with task and purpose, or the fingerprint of each file; they are read once."""
        settings = self.settings
        self.task: str | None = None
        if self.own:
            self._require_files()
            sets: dict[str, Any] = {key: _fingerprint(place) for key, place in self.places.items()}
        else:
            if self.profile.name not in WORLDS:
                raise ConfigError(
                    f"{with_kind(self.models['model'])} brings no rows. "
                    f"Give {' and '.join(map(setting, NEEDED))}, and for trainability "
                    f"{' and '.join(map(setting, TASK))}.",
                    field=NEEDED[0],
                )
            self.task = find_task(settings.task or self.profile.default_task or "familiar").name
            sets = {"world": self.profile.name, "purpose": settings.purpose}
        self.has_task = "world" in sets or all(key in self.places for key in TASK)
        attack_rows(sets, self.places, max(self.grid["rows"]), 0)
        if not harmful_sets(sets, self.places, 1)[IN_DOMAIN]:
            raise ConfigError(f"{setting('harmful_prompts')}: there is none. Give at least one.")
        if self.has_task and self.own:
            task_rows(sets, self.places, None, 0)
            reference_rows(sets, self.places, None)
        return sets

    def _require_files(self) -> None:
        for key in NEEDED:
            if getattr(self.settings, key) is None:
                given = next(key for key in FILES if getattr(self.settings, key) is not None)
                raise ConfigError(
                    f"{setting(key)} is missing: {setting(given)} is given, and rows of files and of a world are not "
                    "mixed. Give it too.",
                    field=key,
                )
        if self.settings.task is not None:
            raise ConfigError(f"{setting('task')} chooses among the lab's tasks, and files are given. Leave it out.")


def _numbers(name: str, given: Sequence[Any] | None, default: Sequence[Any], kind: type) -> list[Any]:
    values = list(dict.fromkeys(kind(value) for value in (default if given is None else given)))
    if not values or any(not value > 0 for value in values):
        raise ConfigError(f"{setting(name)}: give at least one, each above 0.", field=name)
    return values


def _budget(steps: int) -> dict[str, Any]:
    return {"max_steps": steps, "save_strategy": "no"}


def _fingerprint(place: str) -> str:
    path = Path(place).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return " ".join(f"{file.relative_to(path)}:{file_digest(file)}" for file in files)
    return file_digest(path) if path.is_file() else place  # a Hub id
