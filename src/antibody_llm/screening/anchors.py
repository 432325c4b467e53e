"""Anchors: the provider's own labelled rows, scored when a model is aligned and stored beside it.

They fix where harmful and where benign rows lie for *this* model. Without them one would have to guess which cluster of
an upload is the harmful one. With them an upload without harm has none, however many clusters it has, and an upload
that is all harm is not mistaken for one that is all benign.

The rows must be new to the model: on rows that it was aligned on, it refuses more surely than it will elsewhere.

Only what hidden states show is read when a model is aligned: two passes over the prompts. Measures of refusals and of
answers need ten forwards more, and are read when a run asks for one (``checked_anchors``).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..data.records import Record, Template, TokenizedRow
from ..errors import DataError, ModelError, TrainingError
from ..files import whole
from ..likelihood.reader import ModelReader
from ..mentions import setting
from ..primitives.mixture import LogRatio, log_density_ratio
from ..primitives.statistics import auroc
from ..text import counted
from .evidence import BEFORE, NOW, Evidence, EvidenceKind
from .probe import Probe, fit_probe, held_out_shifts
from .reading import collect
from .states import states

ANCHORS = "anchors.safetensors"
"""The file in a model's or an adapter's folder."""
MIN_ROWS = 8
"""The fewest rows of each label. 64 or more make a share that can be trusted."""
MIN_AUROC = 0.8
"""AUROC over the anchors below which a measure cannot distinguish harmful from benign rows for this model."""
TOLERANCE = 0.05
"""Largest difference between an anchor's evidence now and as stored, as a share of the anchors' range; half precision
on other hardware stays well below."""
TEMPLATES = tuple(Template)


@dataclass(frozen=True)
class Anchors:
    """Labelled rows with their evidence.

    Attributes:
        rows: The labelled rows, harmful ones first.
        num_harmful: How many of them are harmful.
        evidence: What was read of ``rows``: feature-shift and refusal-feature, and others where they were asked for.
        probe: The directions fitted to them.
        held_out: [rows], feature-shift of each by a probe fitted without it.
        num_refusals: k, the refusals that each row is scored against, for measures that score some.
    """

    rows: tuple[TokenizedRow, ...]
    num_harmful: int
    evidence: Evidence
    probe: Probe
    held_out: Tensor
    num_refusals: int

    def scores(self, measure: EvidenceKind) -> tuple[Tensor, Tensor]:
        """Evidence of the harmful anchors [n_h] and of the benign ones [n_b]."""
        values = self.held_out if measure is EvidenceKind.FEATURE_SHIFT else self.evidence.of(measure)
        return values[: self.num_harmful], values[self.num_harmful :]

    def log_ratio(self, measure: EvidenceKind) -> LogRatio:
        """Estimate log p(e | harm) - log p(e | benign) from the anchors.

        Raises:
            ModelError: the measure does not tell the anchors apart, or was not read.
        """
        if not self.evidence.has(measure):
            raise ModelError(f"{measure} was not read of the model's anchors. Read it, or choose another measure.")
        harmful, benign = self.scores(measure)
        if (found := auroc(benign, harmful)) < MIN_AUROC:
            raise ModelError(
                f"{measure} does not tell this model's harmful anchors from its benign ones (AUROC "
                f"{math.floor(1000 * found) / 1000:.3f}, at least {MIN_AUROC:.3f} needed): the alignment did not "
                "change how it reads harmful prompts, or the anchors are not what they are called. Choose another "
                "measure, or align it first."
            )
        return log_density_ratio(harmful, benign)


def make_anchors(
    reader: ModelReader,
    harmful: Sequence[TokenizedRow],
    benign: Sequence[TokenizedRow],
    *,
    num_refusals: int = 4,
    progress: Callable[[int], None] | None = None,
) -> Anchors:
    """Fit the probe to labelled rows and score them by the measures of hidden states.

    Args:
        reader: The aligned model, and the one before it.
        harmful: Harmful rows, with any answer; measures that read answers judge by that one.
        benign: Harmless rows, with any answer.
        num_refusals: k, the refusals that each row is scored against, for measures that score some.
        progress: Called with the number of rows read, twice for all of them.

    Raises:
        DataError: fewer than ``MIN_ROWS`` of a label.
        ModelError: there is no model before alignment.
        TrainingError: what is read of a row is not finite.
    """
    require_enough(len(harmful), len(benign))
    for label, rows in (("harmful", harmful), ("benign", benign)):
        require_one_answer([(f"{label} anchor row {i + 1}", len(row.spans)) for i, row in enumerate(rows)])
    rows = tuple(TokenizedRow(i, row.input_ids, row.spans, row.template) for i, row in enumerate((*harmful, *benign)))
    name = _called(len(harmful))
    now, before = (states(reader, rows, before=when, name=name, progress=progress) for when in (NOW, BEFORE))
    probe = fit_probe(now, before, len(harmful))
    (shift, state), (shift_before, _) = probe.read(now), probe.read(before)
    readings = {("shift", NOW): shift, ("state", NOW): state, ("shift", BEFORE): shift_before}
    evidence = Evidence(len(rows), torch.arange(len(rows)), readings, torch.full((len(rows),), -1), probe.offset)
    return Anchors(rows, len(harmful), evidence, probe, held_out_shifts(now, before, len(harmful)), num_refusals)


def with_measure(reader: ModelReader, anchors: Anchors, measure: EvidenceKind) -> Anchors:
    """The anchors with the evidence of a measure, which is read now if it was not read before.

    Raises:
        TrainingError: what is read of a row is not finite.
    """
    if anchors.evidence.has(measure):
        return anchors
    found = _collected(reader, anchors, range(len(anchors.rows)), measure)
    readings = anchors.evidence.readings | found.readings
    return replace(anchors, evidence=replace(anchors.evidence, readings=readings, nearest=found.nearest))


def checked_anchors(reader: ModelReader, anchors: Anchors, measure: EvidenceKind) -> Anchors:
    """``with_measure``, once some of what is stored has been read again and compared (``check_anchors``)."""
    stored = measure
    if not anchors.evidence.has(measure):
        stored = EvidenceKind.FEATURE_SHIFT if measure.needs_base else EvidenceKind.REFUSAL_FEATURE
    check_anchors(reader, anchors, stored)
    return with_measure(reader, anchors, measure)


def _collected(reader: ModelReader, anchors: Anchors, which: Sequence[int], measure: EvidenceKind) -> Evidence:
    return collect(
        reader,
        [anchors.rows[i] for i in which],
        [measure],
        probe=anchors.probe,
        num_refusals=anchors.num_refusals,
        name=_called(anchors.num_harmful),
    )


def require_enough(num_harmful: int, num_benign: int) -> None:
    """Refuse fewer than ``MIN_ROWS`` of a label.

    Raises:
        DataError: there are fewer.
    """
    for label, num in (("harmful", num_harmful), ("benign", num_benign)):
        if num < MIN_ROWS:
            raise DataError(
                f"{counted(num, f'{label} anchor row')} where at least {MIN_ROWS} are needed. Give more as "
                f"{setting(f'anchor_{label}_data')}."
            )


def absent_anchors(model: str) -> ModelError:
    """The error of a model without anchors, where they are needed.

    Args:
        model: What the error calls the model.
    """
    return ModelError(
        f"{model} carries no anchors, which show what harmful and benign rows look like to it. Align it with "
        f"{setting('anchor_harmful_data')} and {setting('anchor_benign_data')}, or add them: antibody anchors."
    )


def require_templates(anchors: Anchors, rows: Iterable[Record | TokenizedRow]) -> None:
    """Refuse rows of a template that no anchor has.

    Raises:
        DataError: there are some.
    """
    if unseen := {row.template for row in rows} - {row.template for row in anchors.rows}:
        raise DataError(
            f"the upload has rows of the {min(unseen)} template, and no anchor of the model has. Alignment to one "
            "template changes little of how the other is read, so that harm would pass for benign. Upload chats where "
            "the anchors are chats, or align with anchors of both kinds."
        )


def require_one_answer(rows: Iterable[tuple[str, int]]) -> None:
    """Refuse anchors with several trained turns.

    The probe is fitted to an anchor's first turn, while an upload's row counts by its worst one: the two would be read
    on different scales.

    Args:
        rows: What errors call each row, and how many trained turns it has.

    Raises:
        DataError: one has more than one.
    """
    several = [(name, num) for name, num in rows if num > 1]
    if several:
        name, num = several[0]
        more = f" ({len(several) - 1} more like it)" if len(several) > 1 else ""
        raise DataError(
            f"{name}{more}: {num} trained turns, and an anchor has one. Give one question and one answer in each row, "
            "or give the earlier answers weight 0."
        )


def _called(num_harmful: int) -> Callable[[TokenizedRow], str]:
    """Name the rows of ``Anchors`` for errors."""

    def name(row: TokenizedRow) -> str:
        if row.row_id < num_harmful:
            return f"harmful anchor row {row.row_id + 1}"
        return f"benign anchor row {row.row_id - num_harmful + 1}"

    return name


def check_anchors(reader: ModelReader, anchors: Anchors, measure: EvidenceKind, *, num: int = 8) -> None:
    """Score some anchors again and compare: a wrong base, adapter or precision must not pass for evidence.

    Raises:
        TrainingError: the evidence differs by more than rounding (both numbers are given), or is not finite.
    """
    some = (*range(num // 2), *range(anchors.num_harmful, anchors.num_harmful + num // 2))
    again = _collected(reader, anchors, some, measure).of(measure)
    stored = anchors.evidence.of(measure)
    spread = float(stored.max() - stored.min())
    difference = (again - stored[list(some)]).abs()
    worst = int(difference.argmax())
    if not float(difference[worst]) <= TOLERANCE * spread:
        raise TrainingError(
            f"self-check: {measure} of an anchor is {float(again[worst]):.4f} now and {float(stored[some[worst]]):.4f} "
            "as stored with the model. The model, its base, or the refusals are not those that it was aligned with; "
            f"check {setting('base')}, {setting('adapter')} and {setting('refusals')}, or align again."
        )


def write_anchors(folder: Path, anchors: Anchors) -> None:
    """Store anchors beside the model, in one file, whole or not at all.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    rows = anchors.rows
    spans = [(i, start, end) for i, row in enumerate(rows) for start, end in row.spans]
    tensors = {
        "input_ids": torch.tensor([token for row in rows for token in row.input_ids], dtype=torch.int32),
        "lengths": torch.tensor([len(row.input_ids) for row in rows]),
        "spans": torch.tensor(spans),
        "templates": torch.tensor([TEMPLATES.index(row.template) for row in rows]),
        "nearest": anchors.evidence.nearest,
        "held_out": anchors.held_out,
        "probe.shift": anchors.probe.shift.contiguous(),
        "probe.state": anchors.probe.state.contiguous(),
        "probe.offset": torch.tensor(anchors.probe.offset, dtype=torch.float64),
    }
    for (name, before), values in anchors.evidence.readings.items():
        tensors[f"{'before' if before else 'now'}.{name}"] = values.contiguous()
    metadata = {"num_harmful": str(anchors.num_harmful), "num_refusals": str(anchors.num_refusals)}
    with whole(folder / ANCHORS) as file:
        file.write_bytes(save(tensors, metadata=metadata))


def read_anchors(folder: Path) -> Anchors | None:
    """Read the anchors of a model's or an adapter's folder; None where there are none.

    Raises:
        ModelError: the file is damaged.
    """
    file = folder / ANCHORS
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as stored:
            metadata: Mapping[str, str] = stored.metadata()
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  (not a mapping)
        return _restored(tensors, int(metadata["num_harmful"]), int(metadata["num_refusals"]))
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{file}: cannot be read ({error}). Align the model again, or remove the file.") from error


def anchors_fingerprint(folder: Path) -> str | None:
    """SHA-256 of the anchors in a folder, hex: it changes when they do. None: there are none."""
    file = folder / ANCHORS
    return sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _restored(tensors: Mapping[str, Tensor], num_harmful: int, num_refusals: int) -> Anchors:
    ids = tensors["input_ids"].split(tensors["lengths"].tolist())
    spans: list[list[tuple[int, int]]] = [[] for _ in ids]
    for i, start, end in tensors["spans"].tolist():
        spans[i].append((start, end))
    rows = tuple(
        TokenizedRow(i, tuple(some.tolist()), tuple(spans[i]), TEMPLATES[template])
        for i, (some, template) in enumerate(zip(ids, tensors["templates"].tolist(), strict=True))
    )
    probe = Probe(tensors["probe.shift"], float(tensors["probe.offset"]), tensors["probe.state"])
    times = {"now": NOW, "before": BEFORE}
    readings = {
        (name.partition(".")[2], times[name.partition(".")[0]]): values
        for name, values in tensors.items()
        if name.partition(".")[0] in times
    }
    owner = tensors["spans"][:, 0].contiguous()
    evidence = Evidence(len(rows), owner, readings, tensors["nearest"], probe.offset)
    return Anchors(rows, num_harmful, evidence, probe, tensors["held_out"], num_refusals)
