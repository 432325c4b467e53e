"""Report which rows of an upload are suspicious, and how many are harmful, before anything is trained on them.

The upload is read twice: once to see that every row can be used, and once, in chunks, to score it. A few numbers per
row stay in memory, and the texts of the rows that the report shows; the rows of a data set stay there too.
"""

import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from ..data.notices import template_notices
from ..errors import ConfigError, DataError, OutputError
from ..events import Measured, emit, inform, report_progress, warn, warned
from ..files import write_text
from ..mentions import setting
from ..models.loading import LoadedModel, load_model
from ..models.names import resolve
from ..primitives.mixture import halved_log_ratio
from ..profiles import profile_of
from ..screening.anchors import anchors_fingerprint, read_anchors
from ..screening.evidence import EvidenceKind
from ..screening.posterior import Finding, Judgement, judge_upload
from ..screening.reader import EvidenceReader, chosen_measure, template_of
from ..screening.report import render_report
from ..screening.result import SUMMARY, ScreenResult, stored_screening
from ..screening.rows import ROWS_JSONL, ROWS_PARQUET, Flag, write_rows
from ..screening.scan import Scan, scan
from ..screening.upload import Upload, open_upload
from ..settings import Rows, ScreenSettings, written_out
from ..store.environment import environment
from ..store.folder import RunFolder, State, open_run
from ..store.naming import base_of, described_model, model_name
from ..store.result import RESULT, RunResult
from ..text import quoted
from .encoding import make_renderer
from .resources import before_alignment, examples, model_reader
from .sources import opened, read_refusals
from .verb import verb

REPORT = "report.html"


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
            "answers": settings.answers,
            "batch_size": settings.batch_size,
        }
        config = written_out(settings, config)
        inputs = (settings.data, name, adapter, before, settings.refusals)
        folder = open_run(settings.output, config, overwrite=settings.overwrite, inputs=inputs)
        if folder.state is State.COMPLETE:
            inform(f"{folder.path}: already complete; this is its stored result.")
            return stored_screening(folder.path)
        _require_writable(folder)
        loaded = load_model(name, adapter=adapter, base=base)
        reader = _reader(loaded, wanted, texts, upload, settings)
        for warning in reader.warnings:
            warn(f"{name}: {warning}")
        with closing(reader.cache), nullcontext() if reader.answers is None else closing(reader.answers.cache):
            scanned = scan(upload, reader, partial(_report_screened, upload.num_rows))
    return _write(folder, scanned, reader, model=str(settings.model), data=upload.name, started=started)


# -- before the scan ---------------------------------------------------------------------------------------------


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
    with opened(data, name="the rows to screen") as rows:
        yield open_upload(rows)


def _require_writable(folder: RunFolder) -> None:
    """Refuse a folder that cannot be written to, before the scoring and not after it."""
    place = folder.path
    while not place.exists():
        place = place.parent
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        raise OutputError(f"{folder.final}: {place} cannot be written to. Choose another {setting('output')}.")


def _reader(
    loaded: LoadedModel, wanted: EvidenceKind | None, texts: tuple[str, ...], upload: Upload, settings: ScreenSettings
) -> EvidenceReader:
    """The reader of this upload; what the chat template does with its rows is reported.

    Raises:
        ModelError: the measure asked for lacks a base or anchors, or cannot tell them apart, or the base is the model.
        TrainingError: the anchors do not read as they did when the model was aligned.
    """
    anchors = read_anchors(_anchors_folder(loaded.name, loaded.adapter))
    measure = chosen_measure(wanted, loaded, anchors)
    template = template_of(upload)
    short = examples([template, *(row.template for row in (anchors.rows if anchors else ()))], upload.name)
    renderer = make_renderer(loaded)
    before = before_alignment(loaded) if measure.needs_base else None
    models = model_reader(loaded, before, renderer, refusals=texts, examples=short, batch_size=settings.batch_size)
    reader = EvidenceReader(
        loaded, models, renderer, measure=measure, anchors=anchors, template=template, answers=settings.answers
    )
    for notice in template_notices(short, renderer):
        inform(notice)
    return reader


def _report_screened(total: int, done: float) -> None:
    report_progress("screening", int(done), total)


# -- what is written ---------------------------------------------------------------------------------------------


def _write(
    folder: RunFolder, scanned: Scan, reader: EvidenceReader, *, model: str, data: str, started: float
) -> ScreenResult:
    """Judge the upload by what the scan found, and write everything."""
    table = scanned.table
    positions, evidence, repeated = table.scored()
    if not len(positions):
        raise DataError(
            f"{data}: no row can be scored: {table.num(Flag.EMPTY)} are empty and {table.num(Flag.TOO_LONG)} longer "
            f"than the model's {reader.renderer.max_length} tokens. Shorten them, or screen with another model."
        )
    sides, judged = reader.judges, None
    if sides is not None:
        judged = judge_upload(evidence, *sides, repeated=repeated, unfamiliar=table.unfamiliar())
    said = _judged_answers(scanned, reader)
    chosen = scanned.label_first.chosen()
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
        num_likely_harmful=None if judged is None else judged.num_likely_harmful,
        num_far=None if reader.familiarity is None or sides is None else table.num_far(),
        label_first=tuple(table.line(row.position) for row in chosen),
        harmful_answers=None if said is None else said.share,
        answers_interval=None if said is None else said.interval,
        num_spans=None if said is None else table.num_with_spans(),
        measure=reader.measure,
        model=model,
        base=reader.base,
        warnings=warned(),
        seconds=time.monotonic() - started,
    )
    probability = None if judged is None else judged.probability
    of_answers = None if said is None else said.probability
    shown = scanned.shown(probability, reader.texts)
    page = render_report(result.to_json(), shown, chosen, evidence, sides, scanned.shown_answers())
    folder.begin(environment(0))
    try:
        write_rows(folder.path, lambda: table.rows(probability, reader.texts, of_answers))
        write_text(folder.path / REPORT, page)
        write_text(folder.path / SUMMARY, result.to_stored())
        run = _as_run(result)
        folder.finish(run)
        emit(Measured(values=run.metrics))
    except BaseException:
        # Where ``result.json`` exists the run is complete, and only the final rename failed. Deleting files then would
        # let the next --overwrite install an empty run.
        if not (folder.path / RESULT).is_file():
            for name in (ROWS_JSONL, ROWS_PARQUET, REPORT, SUMMARY):
                (folder.path / name).unlink(missing_ok=True)
            folder.abandon()
        raise
    return result


def _judged_answers(scanned: Scan, reader: EvidenceReader) -> Judgement | None:
    """The judgement of the answers by those of the anchors; None where they were not read."""
    if reader.answers is None:
        return None
    evidence, repeated = scanned.table.answers()
    return judge_upload(evidence, *reader.answers.rule.judges, repeated=repeated, ratio=halved_log_ratio)


def _as_run(result: ScreenResult) -> RunResult:
    metrics = {}
    if result.interval is not None:
        metrics = dict(zip(("share_low", "share_high"), result.interval, strict=True))
        if result.estimated_harmful_share is not None:
            metrics = {"estimated_harmful_share": result.estimated_harmful_share} | metrics
    return RunResult(
        output=result.output,
        model=None,
        metrics=metrics,
        seconds=result.seconds,
        num_rows=result.num_rows,
        warnings=result.warnings,
    )
