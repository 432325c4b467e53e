"""Score the provider's anchors with an aligned model, and add anchors to a model that has been aligned before."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from ..data.records import Record, TokenizedRow
from ..data.roles import ANCHOR_ROLES, Role
from ..data.source import Source
from ..errors import ConfigError, DataError, ModelError, OutputError
from ..events import Measured, emit, report_progress, warned
from ..files import TEMPORARY, disk_errors, held, is_held
from ..likelihood.ranks import alone
from ..mentions import setting
from ..models.loading import LoadedModel, load_model
from ..models.names import PACKAGED, resolve
from ..paths import checked_output
from ..primitives.statistics import auroc
from ..profiles import profile_of
from ..screening.anchors import (
    Anchors,
    check_anchors,
    make_anchors,
    read_anchors,
    require_enough,
    require_one_answer,
    write_anchors,
)
from ..screening.cache import row_digest
from ..screening.evidence import EvidenceKind
from ..settings import AnchorsSettings, Rows, rows_of
from ..store.folder import refuse_inputs
from ..store.lock import LOCK, FolderLock
from ..store.naming import model_name
from .encoding import encode, make_renderer
from .resources import before_alignment, examples, model_reader
from .sources import read_refusals, read_rows
from .verb import verb


@dataclass(frozen=True, kw_only=True)
class AnchorsResult:
    """A model's anchors after some were added."""

    output: Path
    """The folder of the model or adapter that has them."""
    num_harmful: int
    num_benign: int
    num_new: int
    """How many of both were added."""
    auroc: float
    """AUROC of feature-shift between the two, each row by a direction fitted without it; 1 is perfect."""

    warnings: tuple[str, ...] = ()
    """Settings spelled as in Python."""

    def to_json(self) -> dict[str, Any]:
        """The result as plain values, with paths as text."""
        return asdict(self) | {"output": str(self.output), "warnings": list(self.warnings)}


@verb(AnchorsSettings)
def anchors(settings: AnchorsSettings) -> AnchorsResult:
    """Add labelled rows to those that a model's uploads are judged by, without aligning it again.

    All anchors, old and new, are scored together, so that the direction that separates them is fitted to all.

    Args:
        settings: Which model gets which rows.

    Raises:
        AntibodyError: whatever a user can fix; nothing has been written then.
    """
    given = _given(settings)
    name = model_name(settings.model)
    adapter = None if settings.adapter is None else model_name(settings.adapter)
    place = Path(resolve(adapter or name))
    target = _target(adapter or name, place, settings.output)
    records = {
        str(role): read_rows(given[role], name=f"the {role} rows").records if role in given else []
        for role in (Role.ANCHOR_HARMFUL, Role.ANCHOR_BENIGN)
    }
    require_one_answer(_with_turns([record for of_role in records.values() for record in of_role]))
    with FolderLock(place) if target == place else nullcontext():  # what another process adds meanwhile would be lost
        stored = read_anchors(place)
        if stored is None:
            require_enough(*map(len, records.values()))
        texts = read_refusals(settings.refusals, default=profile_of(name).refusals)
        loaded = load_model(name, adapter=adapter, base=None if settings.base is None else str(settings.base))
        made, num_new = _scored(loaded, stored, records, texts, settings.batch_size)
        _write(made, place, target)
        harmful, benign = made.scores(EvidenceKind.FEATURE_SHIFT)
        result = AnchorsResult(
            output=target,
            num_harmful=len(harmful),
            num_benign=len(benign),
            num_new=num_new,
            auroc=auroc(benign, harmful),
            warnings=warned(),
        )
        emit(Measured(values={"auroc": result.auroc}))
        return result


def _given(settings: AnchorsSettings) -> dict[Role, Rows]:
    """The rows to add, by role.

    Raises:
        ConfigError: there are none.
    """
    given = {role: rows for role, rows in rows_of(settings).items() if rows is not None}
    if not given:
        raise ConfigError(
            f"there are no rows to add. Give {setting('anchor_harmful_data')}, {setting('anchor_benign_data')}, or "
            "both."
        )
    return given


def _scored(
    loaded: LoadedModel,
    stored: Anchors | None,
    records: Mapping[str, Sequence[Record]],
    refusals: Sequence[str],
    batch_size: int,
) -> tuple[Anchors, int]:
    """The old and the new anchors, scored together, and the number of new ones.

    Raises:
        ModelError: the model before alignment is not known, or feature-shift does not separate the anchors.
        DataError: a row is both harmful and benign, or there are too few.
        TrainingError: the old anchors do not read as they did when they were stored.
    """
    if loaded.base is None:
        raise ModelError(
            f"{loaded.name} does not say which model it was before its alignment, and anchors compare the two. "
            f"Name it with {setting('base')}."
        )
    before = before_alignment(loaded)
    renderer = make_renderer(loaded)
    rows, _ = encode(records, renderer, skip=False)
    harmful, benign, num_new = _merged(stored, rows[Role.ANCHOR_HARMFUL], rows[Role.ANCHOR_BENIGN])
    short = examples((row.template for row in (*harmful, *benign)), "anchors")
    reader = model_reader(loaded, before, renderer, refusals=refusals, examples=short, batch_size=batch_size)
    progress = _reporting(len(harmful) + len(benign))
    if stored is None:
        made = make_anchors(reader, harmful, benign, progress=progress)
    else:
        shift_is_stored = stored.evidence.has(EvidenceKind.SHIFT)
        check_anchors(reader, stored, EvidenceKind.SHIFT if shift_is_stored else EvidenceKind.FEATURE_SHIFT)
        made = make_anchors(reader, harmful, benign, num_refusals=stored.num_refusals, progress=progress)
    made.log_ratio(EvidenceKind.FEATURE_SHIFT)  # refuses anchors that it does not separate
    return made, num_new


def _target(name: str, place: Path, output: str | Path | None) -> Path:
    """The folder that gets the anchors, checked; nothing is written.

    Raises:
        OutputError: it is not ours to write to, or holds something.
        ModelError: the model is not a local folder.
    """
    if not place.is_dir():
        raise ModelError(f"{name}: anchors are stored beside a model's weights. Download it, and name its folder.")
    if output is None:
        if name in PACKAGED:
            raise OutputError(
                f"{name}: comes with the package and is not changed. Name a folder for a copy: {setting('output')}."
            )
        return place
    target = checked_output(output).resolve()
    refuse_inputs(target, [place])
    if target.exists() and any(target.iterdir()):
        raise OutputError(f"{target}: exists already. Name a new folder.")
    return target


def _merged(
    stored: Anchors | None, harmful: Sequence[TokenizedRow], benign: Sequence[TokenizedRow]
) -> tuple[list[TokenizedRow], list[TokenizedRow], int]:
    """Harmful and benign rows, the old ones first and then the new ones that are not among them; and how many are new.

    Raises:
        DataError: a row is both harmful and benign.
    """
    num = 0 if stored is None else stored.num_harmful
    old = () if stored is None else stored.rows
    sides, known = (list(old[:num]), list(old[num:])), [set(map(row_digest, rows)) for rows in (old[:num], old[num:])]
    for side, digests, new in zip(sides, known, (harmful, benign), strict=True):
        for row in new:
            if (digest := row_digest(row)) not in digests:
                digests.add(digest)
                side.append(row)
    if both := known[0] & known[1]:
        raise DataError(
            f"{len(both)} anchor rows are both harmful and benign, the old ones included. Take them out of one of the "
            "files."
        )
    return sides[0], sides[1], sum(map(len, sides)) - len(old)


def _write(made: Anchors, place: Path, target: Path) -> None:
    """Write one file in place, or else a copy of the whole folder, which appears when it is complete.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    if target == place:
        write_anchors(place, made)
        return
    growing = target.with_name(f".{target.name}{TEMPORARY}")
    if growing.is_dir() and is_held(growing):
        raise OutputError(
            f"{target}: another process is writing to it. Wait until it has ended, or name another folder."
        )
    with disk_errors(target):
        shutil.rmtree(growing, ignore_errors=True)  # what a killed process left
        growing.mkdir(parents=True)
        with held(growing):
            try:
                unfinished = shutil.ignore_patterns(LOCK, f".*{TEMPORARY}")
                shutil.copytree(place, growing, dirs_exist_ok=True, ignore=unfinished)
                write_anchors(growing, made)
                growing.replace(target)
            finally:
                shutil.rmtree(growing, ignore_errors=True)


def score_anchors(
    aligned: LoadedModel,
    before: LoadedModel | None,
    *,
    anchor_harmful: Sequence[Record],
    anchor_benign: Sequence[Record],
    refusals: Sequence[str],
    batch_size: int = 32,
) -> Anchors:
    """Evidence of labelled rows under the aligned model and the one before it.

    Args:
        aligned: The aligned model, as it will be used.
        before: The model before its alignment; None where that is the adapter switched off.
        anchor_harmful: Rows of the harmful kind, new to the model; one question and one answer each.
        anchor_benign: Harmless rows, as new to the model.
        refusals: One-line refusals.
        batch_size: Rows of one forward pass.

    Raises:
        DataError: a row has several trained turns, or there are too few.
        ModelError: the two models are the same, or there is none before alignment.
        TrainingError: what is read of a row is not finite.
    """
    check_anchor_records(anchor_harmful, anchor_benign)
    records = {str(Role.ANCHOR_HARMFUL): anchor_harmful, str(Role.ANCHOR_BENIGN): anchor_benign}
    renderer = make_renderer(aligned)
    rows, _ = encode(records, renderer, skip=False)
    reader = model_reader(
        aligned,
        None if before is None else cast(nn.Module, before.model),
        renderer,
        refusals=refusals,
        examples=[*anchor_harmful, *anchor_benign],
        batch_size=batch_size,
    )
    harmful, benign = rows[Role.ANCHOR_HARMFUL], rows[Role.ANCHOR_BENIGN]
    return make_anchors(reader, harmful, benign, progress=_reporting(len(harmful) + len(benign)))


def _reporting(num_rows: int) -> Callable[[int], None]:
    """What ``make_anchors`` calls, so that its passes are heard of: two over the rows."""
    done = 0

    def report(num: int) -> None:
        nonlocal done
        done += num
        report_progress("reading anchors", done, 2 * num_rows)

    report(0)
    return report


def check_anchor_records(harmful: Sequence[Record], benign: Sequence[Record]) -> None:
    """Check what can be known of anchors without a model, before an alignment that would end with them.

    Raises:
        DataError: a row has several trained turns, or there are too few of a label.
    """
    require_one_answer(_with_turns([*harmful, *benign]))
    require_enough(len(harmful), len(benign))


def _with_turns(records: Sequence[Record]) -> list[tuple[str, int]]:
    """The place of each record, and how many trained turns it has."""
    return [
        (record.where, sum(message.role == "assistant" and message.trained for message in record.messages))
        for record in records
    ]


def store_anchors(weights: Path, loaded: LoadedModel, given: Mapping[Role, Source], refusals: Sequence[str]) -> None:
    """Score anchors with the weights just saved, and store them there; one rank does it alone.

    Args:
        weights: The folder of the adapter or model.
        loaded: What was aligned; it knows the model before.
        given: Rows of both labels.
        refusals: One-line refusals.
    """
    aligned = load_model(str(weights))
    before = None if aligned.adapter_off_is_base else load_model(loaded.base or loaded.name)
    harmful, benign = (given[role].records for role in ANCHOR_ROLES)
    with alone():
        scored = score_anchors(aligned, before, anchor_harmful=harmful, anchor_benign=benign, refusals=refusals)
    with disk_errors(weights):
        write_anchors(weights, scored)
