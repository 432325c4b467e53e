"""The rows of a calibration, divided once: what models are fitted on, what is searched on, what is reported.

    model of a world    the world's half for ``calibrate`` is searched on, that for ``report`` reported
    other model         the provider's rows are divided by their prompts; prompts that differ only in case, white space
                        or punctuation at the ends are one

        harmful rows    two fifths for the defences, a tenth each for the attackers of search and report, a fifth each
                        to be asked
        harmless rows   three tenths for the defences, 3/20 each as uploads, a tenth each as test rows and to be asked
                        whether they are refused. Where typical uploads are given, three fifths are for the defences
                        and the rest to be asked; of the uploads three tenths each are trained on, a fifth each tested

Rows with refusals, and anchors, are the defences' but for prompts that another part has.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import yaml

from ..attacks.asking import Row
from ..building.attacks import clean_rows
from ..building.files import write_rows
from ..data.duplicates import normalise
from ..data.source import Source
from ..errors import ConfigError, DataError
from ..events import warn
from ..files import disk_errors
from ..mentions import setting
from ..models.names import resolve
from ..profiles import Choice, Profile
from ..settings.calibrate import CalibrateSettings

SEARCH, REPORT = "calibrate", "report"
CONFIG = "config.yaml"
"""The file of a run that says what it was fitted on."""
POOL = 3
"""Rows of a world to choose an upload from, for each row of it."""
DEFENCES = ("alignment_data", "harmful_data", "benign_data", "anchor_harmful_data", "anchor_benign_data", "refusals")
"""The settings of the rows that defences and alignments read."""
MEASURED = ("harmful_prompts", "benign_prompts", "test_data")
"""The files that a model is asked."""

Shares = Mapping[tuple[str, str], float]
"""(half, file) to its share. What is left is for the defences."""

HARMFUL: Shares = {
    (SEARCH, "attack_data"): 0.1,
    (REPORT, "attack_data"): 0.1,
    (SEARCH, "harmful_prompts"): 0.2,
    (REPORT, "harmful_prompts"): 0.2,
}
HARMLESS: Shares = {
    (SEARCH, "data"): 0.15,
    (REPORT, "data"): 0.15,
    (SEARCH, "test_data"): 0.1,
    (REPORT, "test_data"): 0.1,
    (SEARCH, "benign_prompts"): 0.1,
    (REPORT, "benign_prompts"): 0.1,
}
ASKED: Shares = {(SEARCH, "benign_prompts"): 0.2, (REPORT, "benign_prompts"): 0.2}
"""The shares of the harmless rows, where typical uploads are given."""
UPLOADS: Shares = {
    (SEARCH, "data"): 0.3,
    (REPORT, "data"): 0.3,
    (SEARCH, "test_data"): 0.2,
    (REPORT, "test_data"): 0.2,
}
LEAST = {"attack_data": 8, "harmful_prompts": 20, "benign_prompts": 20, "test_data": 20, "data": 30}
"""Fewer prompts of a part would say nothing."""


@dataclass(frozen=True)
class Divided:
    """The files of a calibration."""

    halves: Mapping[str, Mapping[str, str]]
    """``SEARCH`` and ``REPORT`` to the keys of a matrix, each with its file."""
    provided: Mapping[str, str]
    """The files for defences and alignments, by the same keys."""
    counts: Mapping[str, int]
    """Rows of each part, by its file's name."""
    rows: int
    """Rows of a simulated upload."""


@dataclass
class _Writer:
    """Writes parts to a folder, and counts them."""

    folder: Path
    counts: dict[str, int] = field(default_factory=dict)

    def __call__(self, name: str, rows: Sequence[Row]) -> str:
        file = self.folder / f"{name}.jsonl"
        write_rows(file, rows)
        self.counts[name] = len(rows)
        return str(file)


def divided(settings: CalibrateSettings, profile: Profile, folder: Path) -> Divided:
    """Write the files of every part into a folder.

    Raises:
        DataError: there are too few rows, or one cannot be used.
        ConfigError: rows are missing.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write = _Writer(folder)
    given = (settings.harmful_data, settings.benign_data, settings.data)
    if given == (None, None, None) and profile.rows("user", Choice(num=1), seed=0) is not None:
        return _of_a_world(settings, profile, write)
    return _of_a_provider(settings, write)


# -- a world -------------------------------------------------------------------------------------------------------


def _of_a_world(settings: CalibrateSettings, profile: Profile, write: _Writer) -> Divided:
    halves = {}
    for half, num in ((SEARCH, settings.prompts), (REPORT, settings.report_prompts)):
        drawn = {
            "data": _drawn(profile, settings, "user", half, POOL * settings.rows),
            "attack_data": _drawn(profile, settings, "user", half, settings.rows, poison_ratio=1.0),
            "harmful_prompts": _drawn(profile, settings, "harmful_prompts", half, num),
            "benign_prompts": _drawn(profile, settings, "benign_prompts", half, num),
            "test_data": _drawn(profile, settings, "test_data", half, num),
        }
        halves[half] = {key: write(f"{half}-{key}", rows) for key, rows in drawn.items()}
    return Divided(halves, _as_given(settings), write.counts, settings.rows)


def _drawn(
    profile: Profile, settings: CalibrateSettings, kind: str, half: str, num: int, poison_ratio: float | None = None
) -> list[Row]:
    task = (settings.task or profile.default_task) if kind in ("user", "test_data") else None
    choice = Choice(num=num, task=task, poison_ratio=poison_ratio, purpose=half)
    source = profile.rows(kind, choice, seed=settings.seed)
    assert source is not None, "a world has rows of every kind"
    return _plain_rows(source)


def _plain_rows(source: Source) -> list[Row]:
    return [
        {"messages": [{"role": message.role, "content": message.content} for message in record.messages]}
        for record in source.records
    ]


# -- a provider's own ----------------------------------------------------------------------------------------------


def _of_a_provider(settings: CalibrateSettings, write: _Writer) -> Divided:
    if settings.task is not None:
        raise ConfigError(f"{setting('task')} chooses among the rows of a world, and rows are given as files.")
    for name in ("harmful_data", "benign_data"):
        if getattr(settings, name) is None:
            raise ConfigError(
                f"{setting(name)} is missing: the model brings no rows. Give both {setting('harmful_data')} and "
                f"{setting('benign_data')}.",
                field=name,
            )
    pools = [("harmful_data", HARMFUL), ("benign_data", HARMLESS if settings.data is None else ASKED)]
    pools += [("data", UPLOADS)] if settings.data is not None else []
    taken: dict[str, tuple[str, str] | None] = {}
    parts: dict[tuple[str, str], list[Row]] = {}
    left: dict[str, list[Row]] = {}
    for name, shares in pools:
        rows = clean_rows(getattr(settings, name), name)
        places = _places(name, [key for key in _keys(rows) if key not in taken], shares, settings.seed)
        taken |= places
        left[name] = []
        for row in rows:
            place = places.get(_key(row))
            (left[name] if place is None else parts.setdefault(place, [])).append(row)
    _cap(parts, settings)
    halves = {
        half: {key: write(f"{half}-{key}", rows) for (of, key), rows in sorted(parts.items()) if of == half}
        for half in (SEARCH, REPORT)
    }
    measured = {key for key, place in taken.items() if place is not None}
    provided = _as_given(settings)
    for name in DEFENCES[:-1]:
        if name in provided:
            rows = left[name] if name in left else clean_rows(provided[name], name)
            provided[name] = write(name, _without(rows, measured if name not in left else set(), provided[name]))
    uploads = min(settings.rows, *(write.counts[f"{half}-data"] for half in (SEARCH, REPORT)))
    return Divided(halves, provided, write.counts, uploads)


def _as_given(settings: CalibrateSettings) -> dict[str, str]:
    return {name: str(given) for name in DEFENCES if (given := getattr(settings, name)) is not None}


def _places(name: str, keys: Sequence[str], shares: Shares, seed: int) -> dict[str, tuple[str, str] | None]:
    """The part of each prompt: a function of the seed and the prompts alone, whatever their order.

    Raises:
        DataError: a part has too few; says how many are needed.
    """
    needed = max(-(-LEAST[part] * 1000 // round(1000 * share)) for (_, part), share in shares.items())
    if len(keys) < needed:
        parts = ", ".join(f"{LEAST[part]} for {half}/{part}" for half, part in shares)
        raise DataError(
            f"{setting(name)} has {len(keys)} different prompts of its own, too few to divide: {needed} are needed "
            f"(at least {parts}; the rest is for the defences). Give more rows.",
            field=name,
        )
    ordered = sorted(keys, key=lambda key: sha256(f"calibrate/{seed}/{name}/{key}".encode()).digest())
    places: dict[str, tuple[str, str] | None] = dict.fromkeys(ordered)
    begin = 0
    for place, share in shares.items():
        end = begin + int(share * len(ordered) + 1e-9)
        places |= dict.fromkeys(ordered[begin:end], place)
        begin = end
    return places


def _cap(parts: dict[tuple[str, str], list[Row]], settings: CalibrateSettings) -> None:
    """Leave no more prompts than are asked for; each once."""
    for (half, part), rows in parts.items():
        if part in MEASURED:
            most = settings.prompts if half == SEARCH else settings.report_prompts
            once = {_key(row): row for row in reversed(rows)}
            parts[half, part] = list(reversed(once.values()))[:most]


def _without(rows: Sequence[Row], measured: set[str], name: str) -> list[Row]:
    left = [row for row in rows if _key(row) not in measured]
    if not left:
        raise DataError(f"{name}: every prompt is among those that are measured, and none is left to fit on.")
    return left


def _keys(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(map(_key, rows)))


def _key(row: Row) -> str:
    """A row's prompt, normalised: every message before the answer that ends it."""
    messages = row["messages"][:-1] if row["messages"][-1]["role"] == "assistant" else row["messages"]
    return "\0".join(f"{message['role']}\0{normalise(message.get('content') or '')}" for message in messages)


# -- the model's own -----------------------------------------------------------------------------------------------


def warn_of_fitted_prompts(model: str, rows: Divided) -> None:
    """Warn of prompts to be measured that the model's own run was fitted on, where its files are still there."""
    place = Path(resolve(model))
    config = next((file for file in (place / CONFIG, place.parent / CONFIG) if file.is_file()), None)
    if config is None:
        return
    try:
        stored = yaml.safe_load(config.read_text(encoding="utf-8"))["data"]
        fitted = [str(each["source"]) for each in stored.values() if Path(each["source"]).is_file()]
        known = {_key(row): file for file in fitted for row in clean_rows(file)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError, DataError):
        return  # no run of ours, or its rows have changed
    for half, files in rows.halves.items():
        asked = _keys(clean_rows(files["harmful_prompts"]))
        shared = [key for key in asked if key in known]
        if shared:
            warn(
                f"{len(shared)} of {len(asked)} harmful prompts of the part to {half} are rows that the model was "
                f"aligned on ({known[shared[0]]}): harm comes out too low. Give other rows, or name "
                f"{setting('alignment')} and the model before it."
            )
