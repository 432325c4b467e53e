"""From a matrix to its jobs: each cell with every default written out, each alignment once."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..attacks.attack import Access
from ..data.roles import Stage
from ..defences.catalogue import make_defence
from ..errors import ConfigError
from ..evaluation.judges.registry import make_judge
from ..lab.tasks import find_task
from ..models.names import resolve, with_kind
from ..profiles import Choice, Profile, profile_of
from ..runs.sources import read_refusals, read_rows
from ..screening.anchors import read_anchors
from ..settings import Regime, plain
from ..store.digest import file_digest
from ..store.naming import described_model, model_name
from .job import Job, described_part, versions
from .matrix_file import NONE, ORACLE, Attacking, Defended, Matrix, Part, placed
from .order import Order
from .settings import BudgetEntry

ALIGNING = (
    *("alignment_data", "harmful_data", "benign_data"),
    *("anchor_harmful_data", "anchor_benign_data", "refusals"),
)
"""The files that an alignment reads."""
PROVIDED = ("alignment_data", "harmful_data", "benign_data", "refusals")
"""Those that a fine-tuning may read too."""
WORLD = ("data", "attack_data", "harmful_prompts", "test_data")
"""The files that a model without rows of its own needs."""
MORE_SETS = ("benign_prompts", "further_prompts", "retention_data")
SETS = ("harmful_prompts", "test_data", *MORE_SETS)
"""The files that a model is asked."""
LONG = 3
"""How many times the tokens of a plain reply are read of one in an attack's own form, which may have talk around it."""
DEFAULT_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Turned:
    """What an attacker turns of a cell beside the axes of a matrix. None, and what is empty, is as the matrix has it.

    Only what is turned is in a cell's configuration, so that a cell which the matrix has too is the same job.
    """

    rows: int | None = None
    prompts: int | None = None
    purpose: str | None = None
    regime: Regime | None = None
    """What the fine-tuning trains; the alignment keeps the matrix's."""
    order: Order | None = None
    asking: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ``Asking``, where the attack has none of its own."""


AS_IT_IS = Turned()


@dataclass(frozen=True)
class Planned:
    """A cell by the names that the matrix has for it. Two of them may be one job."""

    defence: str
    attack: str
    poison_ratio: float
    budget: str
    task: str
    seed: int
    job: Job


@dataclass(frozen=True)
class Plan:
    """All cells of a matrix."""

    matrix: Matrix
    cells: tuple[Planned, ...]

    @property
    def jobs(self) -> list[Job]:
        """Alignments, then cells, nothing twice."""
        return with_needs(cell.job for cell in self.cells)


def with_needs(cells: Iterable[Job]) -> list[Job]:
    """Alignments, then the cells that need them, nothing twice."""
    once = list(dict.fromkeys(cells))
    return [*dict.fromkeys(job.needs for job in once if job.needs is not None), *once]


def make_plan(matrix: Matrix) -> Plan:
    """Plan every cell, seed by seed.

    Raises:
        ConfigError: the matrix lacks what its model does not bring, or names a file or judge that there is not.
        ModelError: there is no such model.
    """
    makes = Maker(matrix)
    cells = [
        Planned(defended.name, attacking.name, ratio, name, task or "", seed, job)
        for seed in matrix.seeds
        for task in makes.tasks
        for defended in matrix.defences
        for name, budget in matrix.budgets.items()
        for attacking in matrix.attacks
        for ratio in attacking.poison_ratios
        for job in (makes.cell(defended, attacking, ratio, budget, task, seed),)
    ]
    return Plan(matrix, tuple(cells))


class Maker:
    """Makes the jobs of a matrix."""

    def __init__(self, matrix: Matrix) -> None:
        settings = self.settings = matrix.settings
        self.file = matrix.file
        with placed(f"{matrix.file}: model"):
            self.model = model_name(settings.model)
            self.profile = profile_of(self.model)
            described = described_model(self.model)
        self._digests: dict[str, str] = {}
        self.own_world = any(getattr(settings, key) is not None for key in (*WORLD, *MORE_SETS))
        self._require_world()
        self.tasks = self._tasks()
        self.judge = self._judge()
        # Where a fingerprint says what a model is, its place does not matter.
        self.base = {k: v for k, v in described.items() if k not in ("name", "place") or described["weights"] is None}
        self.versions = versions()
        self._alignments: dict[Job, Job] = {}
        self._have_anchors: set[tuple[str, str]] = set()

    def cell(
        self,
        defended: Defended,
        attacking: Attacking,
        ratio: float,
        budget: BudgetEntry,
        task: str | None,
        seed: int,
        turned: Turned = AS_IT_IS,
    ) -> Job:
        """The job of a cell."""
        self.require_anchors(defended, attacking)
        settings, aligned = self.settings, self._alignment(defended.alignment, seed)
        regime = turned.regime or settings.regime
        finetuning = self.finetuning(defended, regime, budget)
        post = None if defended.post.name == NONE else self._part(Stage.POST, defended.post, regime)
        sets = (
            self._files((*WORLD, *MORE_SETS))
            if self.own_world
            else {"world": self.profile.name, "task": task, "purpose": turned.purpose or settings.purpose}
        )
        config = {
            "versions": self.versions,
            "model": self.base,
            "regime": regime,
            "finetuning": finetuning,
            "post": post,
            "attack": {"name": attacking.attack.name, "options": plain(dict(attacking.options))},
            "poison_ratio": float(ratio),
            "rows": turned.rows or settings.rows,
            "prompts": None if self.own_world else turned.prompts or settings.prompts,
            "sets": sets,
            "provided": self._files(PROVIDED),
            "judge": self.judge,
            "answer": settings.answer or self.profile.answer(task if not self.own_world else None),
            "max_new_tokens": settings.max_new_tokens or LONG * (self.profile.max_new_tokens or 0) or DEFAULT_TOKENS,
            "batch_size": settings.batch_size,
            "threads": settings.threads,
            "seed": seed,
        }
        extras = {
            "method": "dpo" if Access.PREFERENCES in attacking.attack.needs else None,
            "order": None if turned.order is None else str(turned.order),
            "asking": dict(turned.asking),
            "dtype": None if settings.dtype == "auto" else settings.dtype,
        }
        config |= {name: value for name, value in extras.items() if value}
        label = f"{defended.name}, {attacking.name} {100 * ratio:g} %, seed {seed}"
        return Job("cell", config, self._places((*WORLD, *MORE_SETS, *PROVIDED)), aligned, label)

    def finetuning(self, defended: Defended, regime: Regime, budget: BudgetEntry) -> dict[str, Any]:
        """The fine-tuning of a cell, every default written out."""
        if defended.finetuning.name == NONE:
            return {"name": NONE, "options": {}, "training": {}}
        part = self._part(Stage.FINETUNING, defended.finetuning, regime, budget)
        # Without a profile's calibration the trainer makes checkpoints; a short run is sooner done again.
        part["training"] = {"save_strategy": "no"} | part["training"]
        return part

    def _alignment(self, part: Part, seed: int) -> Job | None:
        if part.name == NONE:
            return None
        settings = self.settings
        config = {
            "versions": self.versions,
            "model": self.base,
            "regime": settings.regime,
            "defence": self._part(Stage.ALIGNMENT, part, settings.regime),
            "provided": self._files(ALIGNING),
            "world": self.profile.name,
            "threads": settings.threads,
            "seed": seed,
        }
        job = Job("alignment", config, self._places(ALIGNING), label=f"alignment by {part.name}, seed {seed}")
        return self._alignments.setdefault(job, job)

    def _part(self, stage: Stage, part: Part, regime: Regime, budget: BudgetEntry | None = None) -> dict[str, Any]:
        """A defence with the profile's calibration beneath its own options and the budget."""
        name = "sft" if part.name == ORACLE else part.name
        options, training = self.profile.calibration(stage, name, regime)
        training = {**training, **part.training}
        if budget is not None:
            given = {
                "num_train_epochs": budget.epochs,
                "learning_rate": budget.learning_rate,
                "per_device_train_batch_size": budget.batch_size,
            }
            training |= {k: v for k, v in given.items() if v is not None} | dict(budget.training or {})
        return described_part(stage, name, {**options, **part.options}, training, called=part.name)

    def require_anchors(self, defended: Defended, attacking: Attacking) -> None:
        """Refuse what reads anchors where a cell's model will have none: each such cell would fail.

        Raises:
            ConfigError: names the defence and what reads them.
        """
        pair, named = (defended.name, attacking.name), defended.finetuning
        if pair in self._have_anchors:
            return
        self._have_anchors.add(pair)
        trains = named.name not in (ORACLE, NONE)
        reads = trains and make_defence(Stage.FINETUNING, named.name, named.options).needs_anchors
        if not reads and Access.SCREENING not in attacking.attack.needs:
            return
        who = f"{self.file}: {defended.name}: {named.name if reads else attacking.name} reads anchors"
        if defended.alignment.name != NONE:
            if self.settings.anchor_harmful_data is None and not self._brings_rows():
                key = "anchor_harmful_data"
                raise ConfigError(f"{who}, and {key} is missing. Give it, and anchor_benign_data.", field=key)
        elif read_anchors(Path(resolve(self.model))) is None:
            raise ConfigError(
                f"{who}, and {self.settings.model} carries none. Give the defence an alignment, which stores them.",
                field="defences",
            )

    def _files(self, keys: tuple[str, ...]) -> dict[str, str]:
        """The fingerprint of each file that the matrix names."""
        return {
            key: self._digest(key, str(given)) for key in keys if (given := getattr(self.settings, key)) is not None
        }

    def _digest(self, key: str, given: str) -> str:
        if given not in self._digests:
            path = Path(given).expanduser()
            if path.is_dir():
                files = sorted(file for file in path.rglob("*") if file.is_file())
                self._digests[given] = " ".join(f"{file.relative_to(path)}:{file_digest(file)}" for file in files)
            elif path.is_file():
                self._digests[given] = file_digest(path)
            elif path.is_absolute() or path.suffix or given.count("/") > 1:
                raise ConfigError(f"{self.file}: {key}: {given}: there is no such file.", field=key)
            else:
                self._digests[given] = given  # a Hub id
        return self._digests[given]

    def _places(self, keys: tuple[str, ...]) -> Mapping[str, str]:
        named = {key: str(given) for key in keys if (given := getattr(self.settings, key)) is not None}
        return {"model": self.model} | {
            key: str(Path(given).expanduser().absolute()) if Path(given).expanduser().exists() else given
            for key, given in named.items()
        }

    def _require_world(self) -> None:
        absent = [key for key in WORLD if getattr(self.settings, key) is None]
        if absent and (self.own_world or not self._brings_rows()):
            why = "some rows are given as files" if self.own_world else f"{with_kind(self.model)} brings no rows"
            raise ConfigError(f"{self.file}: {absent[0]} is missing: {why}. Give {', '.join(absent)}.", field=absent[0])
        for key in (*WORLD, *MORE_SETS, *ALIGNING):
            given = getattr(self.settings, key)
            if given is None:
                continue
            self._digest(key, str(given))  # refuses a file that is not there
            with placed(f"{self.file}: {key}"):  # a row that cannot be used would fail every cell
                if key == "refusals":
                    read_refusals(given)
                else:
                    read_rows(given, name=f"{key} rows", prompts=key in SETS)

    def _brings_rows(self) -> bool:
        return type(self.profile) is not Profile and self.profile.rows("user", Choice(), seed=0) is not None

    def _tasks(self) -> tuple[str | None, ...]:
        given = self.settings.tasks
        if self.own_world:
            if given is not None:
                raise ConfigError(f"{self.file}: tasks are those of the lab, and test_data is given.", field="tasks")
            return (None,)
        tasks = tuple(given or (self.profile.default_task or "",))
        with placed(f"{self.file}: tasks"):
            for task in tasks:
                find_task(task)
        return tasks

    def _judge(self) -> str:
        named = self.settings.judge or next(iter(self.profile.judges), None)
        if named is None:
            raise ConfigError(f"{self.file}: judge is missing: {with_kind(self.model)} brings none.", field="judge")
        with placed(self.file):
            make_judge(named)
        return named
