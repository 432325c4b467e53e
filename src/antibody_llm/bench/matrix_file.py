"""A matrix file: found, read, and checked entry by entry before anything runs."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ..attacks.attack import Access, Attack
from ..attacks.catalogue import find_attack
from ..data.files import read_text
from ..data.roles import Stage
from ..defences.catalogue import CATALOGUE as DEFENCES
from ..defences.catalogue import PAIR_DEFENCES, make_defence, make_pair_defence, make_repair
from ..errors import AntibodyError, ConfigError
from ..evaluation.answers import answer_rule
from ..mentions import spelled
from ..parsing import load_yaml, nearest, parse_options, yaml_fault
from ..paths import as_file, checked_path
from ..runs.trainer_config import check_seed, check_training
from ..settings import missing, parse_settings, plain
from ..settings.fields import check_choices
from ..text import quoted
from .settings import AttackEntry, BudgetEntry, DefenceEntry, Entry, MatrixSettings, PartEntry, PublishedEntry

S = TypeVar("S")
PRESETS = Path(str(files("antibody_llm"))) / "bench" / "presets"
MAX_SEEDS = 10_000
"""The most seeds that are counted from 0."""
NONE, ORACLE = "none", "oracle"
"""No defence of that stage; and plain SFT on the rows that are truly not the attacker's."""


@dataclass(frozen=True)
class Part:
    """A defence of one stage, as a cell has it."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Defended:
    """A defence of the matrix."""

    name: str
    alignment: Part
    finetuning: Part
    post: Part


@dataclass(frozen=True)
class Attacking:
    """An attack of the matrix, with the ratios that it is tried at."""

    name: str
    attack: Attack
    options: Mapping[str, Any]
    poison_ratios: tuple[float, ...]


@dataclass(frozen=True)
class Matrix:
    """A checked matrix file."""

    file: str
    settings: MatrixSettings
    defences: tuple[Defended, ...]
    attacks: tuple[Attacking, ...]
    budgets: Mapping[str, BudgetEntry]
    seeds: tuple[int, ...]
    published: tuple[PublishedEntry, ...]

    @property
    def title(self) -> str:
        """What the report is called."""
        return self.settings.title or Path(self.file).stem


def presets() -> list[str]:
    """The names of the matrices of the package."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


def find_matrix(name: str) -> Path:
    """The file of a path, or of the name of a preset, with or without its ending.

    Raises:
        ConfigError: there is neither; offers the nearest preset.
    """
    path = checked_path(name, "MATRIX")
    if path.is_dir():
        raise ConfigError(f"{name}: a folder. Name a matrix file, or one of: {', '.join(presets())}.", field="matrix")
    if path.exists():
        return path
    preset = PRESETS / f"{Path(name).stem}.yaml"
    if preset.is_file() and str(Path(name).parent) in (".", "presets"):
        return preset
    near = nearest(Path(name).stem, presets())
    raise ConfigError(f"{name}: no such file or preset{near} Presets: {', '.join(presets())}.", field="matrix")


def read_matrix(name: str) -> Matrix:
    """Read and check a matrix file.

    Raises:
        ConfigError: it is not YAML, a key or a name is unknown (the nearest one is offered), a value does not fit, or
            what is combined is impossible; the message begins with file and key.
    """
    path = find_matrix(name)
    try:
        with as_file(path) as readable:
            found = load_yaml(read_text(readable, str(path)))
    except yaml.YAMLError as error:
        raise yaml_fault(str(path), error) from error
    return make_matrix(found, str(path))


def make_matrix(found: Any, file: str) -> Matrix:
    """Check what a matrix file holds.

    Args:
        found: Its content.
        file: What an error calls it.

    Raises:
        ConfigError: as ``read_matrix``.
    """
    settings = _settings(MatrixSettings, found, file)
    with placed(file):
        check_choices(settings)
        if settings.answer is not None:
            answer_rule(settings.answer)
    for key in ("defences", "attacks", "poison_ratios", "tasks", "budgets"):
        given = getattr(settings, key)
        if given is not None and not given:
            raise ConfigError(f"{file}: {key}: there is none. Give at least one.", field=key)
    _refuse_twice(settings.tasks or (), f"{file}: tasks", "tasks")
    _check_numbers(settings, file)
    defences = tuple(_defence(entry, f"{file}: defences[{i}]") for i, entry in enumerate(settings.defences))
    attacks = tuple(_attack(entry, settings, f"{file}: attacks[{i}]") for i, entry in enumerate(settings.attacks))
    _refuse_unpaired(defences, attacks, file)
    for key, names in (
        ("defences", [defence.name for defence in defences]),
        ("attacks", [attack.name for attack in attacks]),
        ("budgets", [str(name) for name in settings.budgets or ()]),
    ):
        _refuse_twice(names, f"{file}: {key}", key)
        if not all(name.strip() for name in names):
            raise ConfigError(f"{file}: {key}: a name is empty. Give each a name of its own.", field=key)
    named = [defence.name for defence in defences]
    if settings.baseline not in named:
        raise ConfigError(
            f"{file}: baseline: no defence of this matrix is called {quoted(settings.baseline)}"
            f"{nearest(settings.baseline, named)} There are: {', '.join(named)}.",
            field="baseline",
        )
    budgets = {
        str(name): _budget(entry, f"{file}: budgets.{name}")
        for name, entry in (settings.budgets or {"default": {}}).items()
    }
    called = [attack.name for attack in attacks]
    published = tuple(_published(e, f"{file}: published[{i}]", called) for i, e in enumerate(settings.published))
    return Matrix(file, settings, defences, attacks, budgets, _seeds(settings, file), published)


# -- entries -------------------------------------------------------------------------------------------------------


def _settings(kind: type[S], given: Any, where: str) -> S:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}: a mapping of keys to values is needed, not {quoted(given)}.")
    if absent := missing(kind, given):
        raise ConfigError(f"{where}: {absent[0]} is missing. Give it.", field=absent[0])
    return parse_settings(kind, given, where=where)


@contextmanager
def placed(where: str) -> Iterator[None]:
    """Begin the message of an error inside with a place, and spell settings as keys: they are in a file."""
    try:
        yield
    except AntibodyError as error:
        said = spelled(error.message, lambda name, value: name if value is None else f"{name}: {value}")
        raise ConfigError(f"{where}: {said}", field=error.field) from error


def _defence(entry: Entry, where: str) -> Defended:
    given = _settings(DefenceEntry, _by_name(entry, where) if isinstance(entry, str) else entry, where)
    alignment = _part(Stage.ALIGNMENT, given.alignment, f"{where}.alignment", also=(NONE,))
    finetuning = _part(Stage.FINETUNING, given.finetuning, f"{where}.finetuning", also=(ORACLE, NONE))
    post = _part(Stage.POST, given.post, f"{where}.post", also=(NONE,))
    return Defended(given.name, alignment, finetuning, post)


def _by_name(name: str, where: str) -> dict[str, str]:
    """A defence in every stage that has one of its name."""
    if name == ORACLE:
        return {"name": name, "finetuning": ORACLE}
    stages = [stage for stage in Stage if (stage, name) in DEFENCES]
    if not stages:
        known = [*dict.fromkeys(known for _, known in DEFENCES), ORACLE]
        raise ConfigError(
            f"{where}: no defence is called {quoted(name)}{nearest(name, known)} There are: {', '.join(known)}.",
            field="defences",
        )
    return {"name": name} | {str(stage): name for stage in stages}


def _part(stage: Stage, entry: Entry, where: str, *, also: Sequence[str]) -> Part:
    given = _settings(PartEntry, {"name": entry} if isinstance(entry, str) else entry, where)
    if given.name in also:
        if given.options:
            raise ConfigError(f"{where}: {given.name} has no options. Leave them out.", field="options")
        with placed(where):
            check_training(given.training or {})
        return Part(given.name, training=dict(given.training or {}))
    names = [*(name for of, name in DEFENCES if of is stage), *also]
    if given.name not in names:
        raise ConfigError(
            f"{where}: no {stage} defence is called {quoted(given.name)}{nearest(given.name, names)} There are: "
            f"{', '.join(names)}.",
            field=str(stage),
        )
    with placed(where):
        check_training(given.training or {})
        if stage is Stage.POST:
            make_repair(given.name, given.options)
            if given.training:
                raise ConfigError("a repair does not train. Leave training out.", field="training")
        else:
            make_defence(stage, given.name, given.options)
    return Part(given.name, plain(dict(given.options or {})), plain(dict(given.training or {})))


def _attack(entry: Entry, settings: MatrixSettings, where: str) -> Attacking:
    given = _settings(AttackEntry, {"attack": entry} if isinstance(entry, str) else entry, where)
    with placed(where):
        attack = find_attack(given.attack)
        parse_options(attack.options, given.attack, given.options or {}, group="options")
    ratios = tuple(settings.poison_ratios if given.poison_ratios is None else given.poison_ratios)
    key = f"{where}.poison_ratios" if given.poison_ratios is not None else f"{where.partition(': ')[0]}: poison_ratios"
    if not ratios:
        raise ConfigError(f"{key}: there is none. Give at least one.", field="poison_ratios")
    for ratio in ratios:
        if not 0 <= ratio <= 1:
            raise ConfigError(f"{key}: {ratio} is not a share. Give a number between 0 and 1.", field="poison_ratios")
        if ratio > 0 and round(ratio * settings.rows) == 0:
            raise ConfigError(
                f"{key}: {ratio} of {settings.rows} rows is not one row. Give a larger ratio, or more rows.",
                field="poison_ratios",
            )
    _refuse_twice(ratios, key, "poison_ratios")
    return Attacking(given.name or attack.name, attack, plain(dict(given.options or {})), ratios)


def _refuse_unpaired(defences: Sequence[Defended], attacks: Sequence[Attacking], file: str) -> None:
    """Refuse an attack on pairs beside a fine-tuning defence that weighs rows alone."""
    paired = next((each.attack.name for each in attacks if Access.PREFERENCES in each.attack.needs), None)
    able = (*PAIR_DEFENCES, ORACLE, NONE)
    for number, defended in enumerate(defences if paired is not None else ()):
        name, options = defended.finetuning.name, defended.finetuning.options
        if name in PAIR_DEFENCES:
            with placed(f"{file}: defences[{number}].finetuning"):
                make_pair_defence(name, options)
        elif name not in (ORACLE, NONE):
            raise ConfigError(
                f"{file}: defences[{number}]: {paired} poisons pairs, and {quoted(name)} was never "
                f"measured on them. Fine-tune by one of: {', '.join(able)}; or give pairs a matrix of their own.",
                field="defences",
            )


def _budget(entry: Any, where: str) -> BudgetEntry:
    given = _settings(BudgetEntry, entry, where)
    for key in ("epochs", "learning_rate", "batch_size"):
        value = getattr(given, key)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{where}: {key} is {value}: it must be above 0.", field=key)
    with placed(where):
        check_training(given.training or {})
    return replace(given, training=dict(given.training or {}))


def _published(entry: Any, where: str, attacks: Sequence[str]) -> PublishedEntry:
    given = _settings(PublishedEntry, entry, where)
    if given.attack not in attacks:
        raise ConfigError(
            f"{where}: attack: no attack of this matrix is called {quoted(given.attack)}"
            f"{nearest(given.attack, attacks)} There are: {', '.join(attacks)}.",
            field="attack",
        )
    if given.read not in ("P", "R", "S"):
        raise ConfigError(f"{where}: read is {quoted(given.read)}: it must be P, R or S.", field="read")
    for key in ("harmful_score", "finetune_accuracy"):
        value = getattr(given, key)
        if value is not None and not 0 <= value <= 1:
            raise ConfigError(f"{where}: {key} is {value}: give a share, 0 to 1.", field=key)
    return given


# -- numbers -------------------------------------------------------------------------------------------------------


def _check_numbers(settings: MatrixSettings, file: str) -> None:
    least: Mapping[str, Callable[[Any], bool]] = {
        **dict.fromkeys(("rows", "prompts", "batch_size", "threads"), lambda value: value >= 1),
        "max_new_tokens": lambda value: value is None or value >= 1,
        "gpus": lambda value: value >= 0,
        "tolerance": lambda value: 0 <= value <= 1,
    }
    for key, holds in least.items():
        value = getattr(settings, key)
        if not holds(value):
            wanted = "a share, 0 to 1" if key == "tolerance" else "0 or more" if key == "gpus" else "1 or more"
            raise ConfigError(f"{file}: {key} is {value}: it must be {wanted}.", field=key)


def _seeds(settings: MatrixSettings, file: str) -> tuple[int, ...]:
    if isinstance(settings.seeds, int) and settings.seeds > MAX_SEEDS:
        raise ConfigError(f"{file}: seeds is {settings.seeds}: at most {MAX_SEEDS} can be counted.", field="seeds")
    seeds = tuple(range(settings.seeds)) if isinstance(settings.seeds, int) else tuple(settings.seeds)
    if not seeds:
        raise ConfigError(f"{file}: seeds: at least one is needed.", field="seeds")
    _refuse_twice(seeds, f"{file}: seeds", "seeds")
    with placed(file):
        for seed in seeds:
            check_seed(seed)
    return seeds


def _refuse_twice(values: Iterable[Any], where: str, key: str) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise ConfigError(f"{where}: {quoted(value)} is there twice. Give each a name of its own.", field=key)
        seen.add(value)
