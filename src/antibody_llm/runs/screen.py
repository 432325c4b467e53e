"""Report which rows of an upload are suspicious, and how many are harmful, before anything is trained on them.

The upload is gone through twice: once to see that every row can be used, and once, in chunks, to score it. What stays
in memory is a few numbers per row and the texts of the rows that the report shows; of a data set, its rows too.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..data.encode import Renderer, RowError
from ..data.notices import template_notices
from ..data.problems import BadRow, report
from ..data.records import Message, Record, Template, TokenizedRow
from ..errors import ConfigError, DataError, ModelError, OutputError
from ..events import Measured, emit, inform, report_progress, warn, warned
from ..likelihood.reader import ModelReader
from ..mentions import setting
from ..models.layout import require_same_shape
from ..models.loading import LoadedModel, load_model
from ..models.names import resolve
from ..profiles import profile_of
from ..screening.anchors import Anchors, anchors_fingerprint, check_anchors, read_anchors
from ..screening.cache import EvidenceCache, Found, cache_folder, digest_of, row_digest, weights_identity
from ..screening.choice import LabelFirst
from ..screening.evidence import EvidenceKind
from ..screening.familiarity import read_familiarity
from ..screening.posterior import Finding, Judgement, judge_upload
from ..screening.reading import collect
from ..screening.report import MostSuspicious, ShownRow, render_report
from ..screening.rows import ROWS_JSONL, ROWS_PARQUET, Flag, RowTable, write_rows
from ..screening.upload import Upload, UploadRow, open_upload
from ..settings import Rows, ScreenSettings, written_out
from ..store.environment import environment
from ..store.folder import RunFolder, State, open_run, write_text
from ..store.naming import base_of, described_model, model_name
from ..store.result import RESULT, RunResult
from ..text import quoted
from .encoding import make_renderer, render_refusals
from .sources import read_refusals, rows_file
from .verb import verb

SUMMARY, REPORT = "summary.json", "report.html"
NUM_REFUSALS = 4
"""k, refusals that a row is scored against; which ones its content tells, so that equal rows read alike. Where the
model has anchors, their own k."""
CHUNK_ROWS, CHUNK_CHARACTERS = 2048, 8_000_000
"""Rows, and characters, that are in memory together."""
LIKELY = 0.5
"""P(harm) from which a row counts as likely harmful."""

NO_BASE = (
    "the model before alignment is not known, so rows are judged by 'ratio', their likelihood against a refusal's, "
    "alone. It cannot tell a prompt that the model wants to refuse from one that it has no answer to: on a task that "
    "is new to the model benign rows look harmful and harmful ones are favoured. Name the model before alignment: "
    f"{setting('base')}."
)
ANSWERS = (
    "this evidence also reads a row's own answer, which the model may know much better or worse than it knows those of "
    "the anchors: the share and the probabilities can be far off (lab, 20 % harmful: 8 % by ratio, 5 % by gap). The "
    f"ranking suffers less. Leave {setting('evidence')} out, and name {setting('base')} where it is not known."
)
NO_ANCHORS = (
    "the model carries no anchors, by which harm could be told from benign: no share, no probability and no verdict, "
    f"rows are only ranked. Align it with {setting('anchor_harmful_data')} and {setting('anchor_benign_data')} to have "
    "them."
)

OTHER_TEMPLATE = (
    "the model's anchors are rendered by {anchors} template, the upload by {upload}: harm reads weaker or stronger in "
    "the one than in the other, so that there is no share, no probability and no verdict, rows are only ranked. Give "
    "the upload in the format of the anchors, for a chat model as messages."
)


@dataclass(frozen=True, kw_only=True)
class ScreenResult:
    """A finished screening: summary.json, and where it is."""

    output: Path
    """The run's folder, with rows.jsonl, rows.parquet, report.html and summary.json."""
    data: str
    num_rows: int
    num_scored: int
    """Rows with evidence, duplicates included."""
    num_distinct: int
    """Of these, rows that no earlier one reads like."""
    flags: dict[str, int]
    """How many rows bear each ``Flag``."""
    verdict: Finding
    estimated_harmful_share: float | None
    """0 to 1, of the rows with evidence; None without anchors, as all that follows from them, and where too many rows
    are unfamiliar."""
    interval: tuple[float, float] | None
    """95 %, of the share; unfamiliar rows may be harmful or not."""
    p_value: float | None
    """p of the test that the share is 0 among familiar rows."""
    num_likely_harmful: int | None
    """Rows whose P(harm) is at least 0.5; None where no row has one."""
    num_far: int | None
    """Rows farther from every anchor than all but 3 in 100 harmful anchors, the unfamiliar ones among them; None where
    distances are not read: without anchors, or by another measure than feature-shift."""
    label_first: tuple[int, ...]
    """Lines of the unfamiliar rows that it would help most to label, the most useful first."""
    measure: EvidenceKind
    model: str
    base: str | None
    """The model before alignment, where it was compared with."""
    warnings: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As plain values, with paths as text."""
        plain = dataclasses.asdict(self)
        interval = None if self.interval is None else list(self.interval)
        return (
            plain
            | {"output": str(self.output), "interval": interval}
            | {
                "warnings": list(self.warnings),
                "label_first": list(self.label_first),
            }
        )


@verb(ScreenSettings)
def screen(settings: ScreenSettings) -> ScreenResult:
    """Score every row of an upload for harm with an aligned model, and write rows, summary and report.

    Args:
        settings: What to screen, with which model, and how.

    Raises:
        AntibodyError: whatever a user can fix; nothing has been written then.
    """
    started = time.monotonic()
    wanted = _measure(settings.evidence)
    name = model_name(settings.model)
    adapter = None if settings.adapter is None else model_name(settings.adapter)
    base = None if settings.base is None else model_name(settings.base)
    texts = read_refusals(settings.refusals, default=profile_of(name).refusals)
    before = base or base_of(name, adapter)
    with _opened(settings.data) as upload:
        config: dict[str, Any] = {
            "verb": "screen",
            "model": described_model(name),
            "adapter": None if adapter is None else described_model(adapter, on=name),
            "base": None if before is None else described_model(before),
            "data": {"source": upload.name, "num_rows": upload.num_rows, "sha256": upload.sha256},
            "evidence": None if wanted is None else str(wanted),
            "refusals": list(texts),
            "anchors": anchors_fingerprint(_anchors_folder(name, adapter)),
            "batch_size": settings.batch_size,
        }
        config = written_out(settings, config)
        inputs = (settings.data, name, adapter, before, settings.refusals)
        folder = open_run(settings.output, config, overwrite=settings.overwrite, inputs=inputs)
        if folder.state is State.COMPLETE:
            inform(f"{folder.path}: already complete; this is its stored result.")
            return _stored(folder.path)
        _require_writable(folder)
        loaded = load_model(name, adapter=adapter, base=base)
        reader = _Reader(loaded, wanted, texts, upload, settings.batch_size)
        for notice in template_notices(reader.examples, reader.renderer):
            inform(notice)
        for warning in reader.warnings:
            warn(f"{name}: {warning}")
        with closing(reader.cache):
            table, suspects, label_first = _scored(upload, reader, partial(_screened, upload.num_rows))
    return _written(
        folder, table, suspects, label_first, reader, model=str(settings.model), data=upload.name, started=started
    )


# -- before the model --------------------------------------------------------------------------------------------


def _anchors_folder(name: str, adapter: str | None) -> Path:
    return Path(resolve(adapter or name))


def _measure(evidence: str | None) -> EvidenceKind | None:
    if evidence is None:
        return None
    try:
        return EvidenceKind(evidence)
    except ValueError:
        raise ConfigError(
            f"{setting('evidence')} is {quoted(evidence)}: it must be one of {', '.join(EvidenceKind)}."
        ) from None


@contextmanager
def _opened(data: Rows) -> Iterator[Upload]:
    with rows_file(data, name="the rows to screen") as (place, called):
        yield open_upload(place, name=called)


def _require_writable(folder: RunFolder) -> None:
    """Say so now, and not after the scoring, that nothing can be written there."""
    place = folder.path
    while not place.exists():
        place = place.parent
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        raise OutputError(f"{folder.final}: {place} cannot be written to. Choose another {setting('output')}.")


# -- scoring -----------------------------------------------------------------------------------------------------


class _Reader:
    """One way of reading evidence: models, measure, anchors, refusals, and what was read before.

    Raises:
        ModelError: the measure asked for lacks a base or anchors, or cannot tell them apart, or the base is the model.
        TrainingError: the anchors do not read as they did when the model was aligned.
    """

    def __init__(
        self, loaded: LoadedModel, wanted: EvidenceKind | None, texts: tuple[str, ...], upload: Upload, batch_size: int
    ) -> None:
        self.loaded, self.texts = loaded, texts
        self.anchors = read_anchors(_anchors_folder(loaded.name, loaded.adapter))
        self.measure = _chosen(wanted, loaded, self.anchors)
        self.num_refusals = self.anchors.num_refusals if self.anchors else NUM_REFUSALS
        self.ratio = None if self.anchors is None else self.anchors.log_ratio(self.measure)
        self.examples = examples = _examples(upload, self.anchors)
        self.template = examples[0].template
        self.renderer: Renderer = make_renderer(loaded)
        aligned = cast(nn.Module, loaded.model)
        self.base = loaded.base if self.measure.needs_base else None
        apart = self.base is not None and not loaded.adapter_off_is_base
        before = cast(nn.Module, load_model(cast(str, self.base)).model) if apart else None
        if before is not None:
            require_same_shape(aligned, before, named=str(self.base), num_tokens=len(loaded.tokenizer))
        identities = weights_identity(aligned), b"adapter off" if before is None else weights_identity(before)
        if identities[0] == identities[1]:
            raise ModelError(
                f"{self.base}: holds the very weights of {loaded.name}, so that there is no alignment to be read "
                f"between the two. {setting('base')} must be the model as it was before its alignment."
            )
        self.models = ModelReader(
            aligned,
            pad_id=cast(int, loaded.tokenizer.pad_token_id),
            refusals=render_refusals(texts, self.renderer, {"": examples}),
            batch_size=batch_size,
            base=before,
        )
        if self.anchors is not None:
            check_anchors(self.models, self.anchors, self.measure)
        ground = self.anchors is not None and self.measure is EvidenceKind.FEATURE_SHIFT
        self.familiarity = read_familiarity(self.models, cast(Anchors, self.anchors)) if ground else None
        self.cache = EvidenceCache(cache_folder(), self._identity(identities))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the numbers cannot say."""
        no_base = self.measure is EvidenceKind.RATIO and self.loaded.base is None
        told = {NO_BASE: no_base, NO_ANCHORS: self.anchors is None}
        if self.anchors is not None and self.judges is None:
            told[OTHER_TEMPLATE.format(anchors="the chat", upload="none")] = self.template is Template.TEXT
            told[OTHER_TEMPLATE.format(anchors="no", upload="the chat one")] = self.template is Template.CHAT
        told[ANSWERS] = self.judges is not None and self.measure.needs_answers
        return tuple(text for text, holds in told.items() if holds)

    @property
    def judges(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Evidence of the harmful and the benign anchors; None where they cannot judge this upload.

        Alignment to chats changes how a bare text is read far less: the lab's harmful rows without the chat template
        lie near the benign anchors, and would be found harmless.
        """
        if self.anchors is None or self.template not in {row.template for row in self.anchors.rows}:
            return None
        return self.anchors.scores(self.measure)

    def encoded(self, record: Record) -> TokenizedRow | None:
        """The row as tokens; None where it is too long, a refusal in place of its answer included if that is read."""
        row = self.renderer.encode(record)
        fits = len(row.input_ids) <= self.renderer.max_length
        return row if fits and (self.measure.needs_probe or self._has_room(row)) else None

    def _has_room(self, row: TokenizedRow) -> bool:
        """Whether any refusal fits in place of any of the row's answers."""
        refusal = max(map(len, self.models.refusals.ids[row.template]))
        return max(start for start, _ in row.spans) + refusal <= self.renderer.max_length

    def read(self, rows: Sequence[TokenizedRow], where: Sequence[str], advance: Callable[[float], None]) -> list[Found]:
        """Evidence of distinct rows, from the cache where they were read before.

        Raises:
            TrainingError: what was read of a row is not finite; says ``where`` it stands.
        """
        keys = [row_digest(row) for row in rows]
        known = self.cache.read(keys)
        new = {key: row for key, row in zip(keys, rows, strict=True) if key not in known}
        if new:
            # A row's refusals follow from its content, not from its place.
            chosen = [dataclasses.replace(row, row_id=int.from_bytes(key[:4])) for key, row in new.items()]
            places = {int.from_bytes(key[:4]): place for key, place in zip(keys, where, strict=True)}
            fresh = dict(zip(new, self._read_new(chosen, places, advance), strict=True))
            self.cache.write(fresh)
            known |= fresh
        return [known[key] for key in keys]

    def unfamiliar(self, found: Sequence[Found]) -> list[bool]:
        """Which rows are unlike every anchor, as far as that is known."""
        if self.familiarity is None or self.judges is None or not found:
            return [False] * len(found)
        evidence, distance = (torch.tensor([cast(float, row[i]) for row in found]) for i in (0, 2))
        return self.familiarity.unfamiliar(evidence, distance).tolist()

    def relative(self, distance: float | None) -> float | None:
        """In units of the distance that 3 harmful anchors in 100 exceed."""
        return None if self.familiarity is None or distance is None else distance / self.familiarity.near

    def _read_new(
        self, rows: Sequence[TokenizedRow], places: Mapping[int, str], advance: Callable[[float], None]
    ) -> list[Found]:
        total = sum(len(row.spans) for row in rows) * (2 if self.measure.needs_base else 1)
        seen = 0

        def progress(num: int) -> None:
            nonlocal seen
            seen += num
            advance(seen / total)

        def name(row: TokenizedRow) -> str:
            return places[row.row_id]

        probe, num = self.anchors.probe if self.anchors else None, self.num_refusals
        found = collect(
            self.models,
            rows,
            [self.measure],
            probe=probe,
            num_refusals=num,
            progress=progress,
            name=name,
            shape=self.familiarity.shape if self.familiarity else None,
        )
        evidence, nearest = found.of(self.measure), found.nearest_refusal()
        distance = found.distances().tolist() if self.familiarity else [None] * len(rows)
        if self.ratio is not None and self.measure.needs_probe:
            # This measure reads no refusals: seek the nearest where a row leans towards harm, which is rarely all, and
            # has room for one.
            room = torch.tensor([self._has_room(row) for row in rows])
            leans = ((self.ratio(evidence) > 0) & room).nonzero()[:, 0]
            if len(leans):
                some = [rows[i] for i in leans.tolist()]
                refused = collect(self.models, some, [EvidenceKind.RATIO], num_refusals=self.num_refusals, name=name)
                nearest[leans] = refused.nearest_refusal()
        return list(zip(evidence.tolist(), nearest.tolist(), distance, strict=True))

    def _identity(self, weights: tuple[bytes, bytes]) -> bytes:
        # "1" may hold evidence that is not finite, "2" has no distances.
        parts: list[str | bytes] = ["3", self.measure, str(self.num_refusals), *self.texts, *weights]
        parts.append(repr(sorted((str(kind), ids) for kind, ids in self.models.refusals.ids.items())))
        if self.anchors is not None and self.ratio is not None:
            probe = self.anchors.probe
            parts += [probe.shift.numpy().tobytes(), probe.state.numpy().tobytes()]
            parts += [row_digest(row) for row in self.anchors.rows]  # the distances are from them
            parts.append(f"{probe.offset!r} {self.ratio.slope.tolist()!r} {self.ratio.bias!r}")
        return digest_of(parts)


def _chosen(wanted: EvidenceKind | None, loaded: LoadedModel, anchors: Anchors | None) -> EvidenceKind:
    if wanted is None:
        if loaded.base is None:
            return EvidenceKind.RATIO
        return EvidenceKind.SHIFT if anchors is None else EvidenceKind.FEATURE_SHIFT
    asked = setting("evidence", wanted)
    if wanted.needs_base and loaded.base is None:
        raise ModelError(
            f"{loaded.name} does not say which model it was before its alignment, and {asked} compares the two. Name "
            f"it with {setting('base')}, or leave {setting('evidence')} out to be judged by 'ratio'."
        )
    if wanted.needs_probe and anchors is None:
        raise ModelError(
            f"{loaded.adapter or loaded.name} carries no anchors, and {asked} is read along what tells them apart. "
            f"Align it with {setting('anchor_harmful_data')} and {setting('anchor_benign_data')}, or leave "
            f"{setting('evidence')} out."
        )
    return wanted


def _examples(upload: Upload, anchors: Anchors | None) -> list[Record]:
    """A record of each template in use, the upload's own first; refusals are rendered as in it."""
    first = next((row.record for row in upload if row.record is not None), None)
    if first is None:
        raise DataError(f"{upload.name}: every row is empty. Give rows with a prompt and a completion.")
    used = dict.fromkeys([first.template, *(row.template for row in (anchors.rows if anchors else ()))])
    # Not the upload's own row, which may be of any length.
    example = (Message("user", "?"), Message("assistant", "."))
    return [Record(0, example, template, upload.name, 0) for template in used]


def _scored(
    upload: Upload, reader: _Reader, advance: Callable[[float], None]
) -> tuple[RowTable, MostSuspicious, LabelFirst]:
    table, suspects, label_first = RowTable(), MostSuspicious(), LabelFirst()
    advance(0)
    seen: dict[bytes, int] = {}
    refused: list[tuple[int, BadRow]] = []
    for chunk in _chunks(upload):
        done = len(table)
        fresh: list[tuple[int, Record, TokenizedRow, bytes]] = []
        for row in chunk:
            if row.record is None:
                table.append(row.line, [Flag.EMPTY])
                continue
            try:
                encoded = reader.encoded(row.record)
            except RowError as error:
                refused.append((row.line, error.problem))
                continue
            spells = [Flag.CONTROL_TOKENS] if reader.renderer.spelled(row.record) is not None else []
            if encoded is None:
                table.append(row.line, [Flag.TOO_LONG, *spells])
                continue
            key = row_digest(encoded)
            if (first := seen.get(key)) is not None:
                table.append(row.line, [Flag.DUPLICATE, *spells], first=first)
                continue
            position = seen[key] = table.append(row.line, spells)
            fresh.append((position, row.record, encoded, key))
        if refused:
            continue  # all of them are named, and nothing more is read
        found = reader.read(
            [encoded for _, _, encoded, _ in fresh],
            [record.where for _, record, _, _ in fresh],
            lambda part: advance(done + part * len(chunk)),  # noqa: B023
        )
        for (position, record, _, key), (evidence, nearest, distance), unfamiliar in zip(
            fresh, found, reader.unfamiliar(found), strict=True
        ):
            table.set(position, evidence, nearest, reader.relative(distance), unfamiliar=unfamiliar)
            suspects.offer(position, evidence, record)
            if unfamiliar:
                label_first.offer(position, key, evidence, record)
        advance(len(table))
    if refused:
        raise report(upload.name, refused)
    if len(table) != upload.num_rows:
        raise DataError(f"{upload.name}: it changed while it was read. Run again once nothing writes to it.")
    return table, suspects, label_first


def _chunks(upload: Upload) -> Iterator[list[UploadRow]]:
    chunk: list[UploadRow] = []
    size = 0
    for row in upload:
        chunk.append(row)
        size += 0 if row.record is None else sum(len(message.content) for message in row.record.messages)
        if len(chunk) == CHUNK_ROWS or size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _screened(total: int, done: float) -> None:
    report_progress("screening", int(done), total)


# -- what is written ---------------------------------------------------------------------------------------------


def _written(
    folder: RunFolder,
    table: RowTable,
    suspects: MostSuspicious,
    label_first: LabelFirst,
    reader: _Reader,
    *,
    model: str,
    data: str,
    started: float,
) -> ScreenResult:
    positions, evidence, repeated = table.scored()
    if not len(positions):
        raise DataError(
            f"{data}: no row can be scored: {table.num(Flag.EMPTY)} are empty and {table.num(Flag.TOO_LONG)} longer "
            f"than the model's {reader.renderer.max_length} tokens. Shorten them, or screen with another model."
        )
    sides = reader.judges
    judged = None
    if sides is not None:
        judged = judge_upload(evidence, *sides, repeated=repeated, unfamiliar=table.unfamiliar())
    probability = None if judged is None else judged.probability
    chosen = label_first.chosen()
    result = ScreenResult(
        output=folder.final,
        data=data,
        num_rows=len(table),
        num_scored=len(positions),
        num_distinct=int((~repeated).sum()),
        flags={str(flag): table.num(flag) for flag in Flag},
        verdict=Finding.NO_ANCHORS if judged is None else judged.verdict,
        estimated_harmful_share=None if judged is None else judged.share,
        interval=None if judged is None else judged.interval,
        p_value=None if judged is None else judged.p_value,
        num_likely_harmful=None
        if judged is None or judged.verdict is Finding.CANNOT_TELL
        else int((judged.probability >= LIKELY).sum()),
        num_far=None if reader.familiarity is None or sides is None else table.num_far(),
        label_first=tuple(table.line(row.position) for row in chosen),
        measure=reader.measure,
        model=model,
        base=reader.base,
        warnings=warned(),
        seconds=time.monotonic() - started,
    )
    shown = _shown(table, suspects, probability, reader.texts)
    page = render_report(result.to_json(), shown, chosen, evidence, sides)
    folder.begin(environment(0))
    try:
        write_rows(folder.path, lambda: table.rows(probability, reader.texts))
        write_text(folder.path / REPORT, page)
        write_text(folder.path / SUMMARY, json.dumps(result.to_json() | {"output": "."}, indent=2) + "\n")
        run = _as_run(result, judged)
        folder.finish(run)
        emit(Measured(values=run.metrics))
    except BaseException:
        # With its result the run is whole, and only could not take its place: to hollow it out would let the next
        # --overwrite put an empty run where the old one was.
        if not (folder.path / RESULT).is_file():
            for name in (ROWS_JSONL, ROWS_PARQUET, REPORT, SUMMARY):
                (folder.path / name).unlink(missing_ok=True)
            folder.abandon()
        raise
    return result


def _shown(
    table: RowTable, suspects: MostSuspicious, probability: torch.Tensor | None, texts: Sequence[str]
) -> list[tuple[ShownRow, dict[str, Any], int]]:
    """The report's rows, each with its line of rows.jsonl and how often it stands in the upload."""
    rows, times = suspects.sorted(), table.times()
    wanted = {row.position for row in rows}
    told = {row["row_id"]: row for row in table.rows(probability, texts) if row["row_id"] in wanted}
    return [(row, told[row.position], int(times[row.position])) for row in rows]


def _as_run(result: ScreenResult, judged: Judgement | None) -> RunResult:
    metrics = {}
    if judged is not None:
        low, high = judged.interval
        metrics = {"share_low": low, "share_high": high}
        if judged.share is not None:
            metrics = {"estimated_harmful_share": judged.share} | metrics
    return RunResult(
        output=result.output,
        model=None,
        metrics=metrics,
        seconds=result.seconds,
        num_rows=result.num_rows,
        warnings=result.warnings,
    )


def _stored(folder: Path) -> ScreenResult:
    """The result of a complete screening.

    Raises:
        OutputError: summary.json is damaged.
    """
    try:
        plain = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        interval = None if plain["interval"] is None else tuple(plain["interval"])
        kinds = {"measure": EvidenceKind(plain["measure"]), "verdict": Finding(plain["verdict"])}
        lists = {name: tuple(plain[name]) for name in ("warnings", "label_first")}
        return ScreenResult(**(plain | kinds | {"output": folder, "interval": interval} | lists))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OutputError(
            f"{folder / SUMMARY}: cannot be read ({error}). Run again with {setting('overwrite')}."
        ) from error
