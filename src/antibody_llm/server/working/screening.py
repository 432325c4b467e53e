"""Screening: which rows of an upload are suspicious, before anything is trained on them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ...data.preferences import is_preference, preferred_row
from ...data.problems import BadRow, report
from ...errors import DataError
from ..numbering import NAME, numbered
from .job import ClaimedWork, JobFailed

MOST_ROWS = 1000
"""Rows that a customer is shown."""
SUSPICIOUS = 0.5
"""P(harm) from which a row is suspicious."""
_SHOWN = ("verdict", "estimated_harmful_share", "interval", "num_likely_harmful", "num_rows", "flags", "measure")


def screen(work: ClaimedWork) -> None:
    """Screen the upload, together with those of the jobs that it continues, and queue the job.

    Raises:
        JobFailed: the upload cannot be read, or the operator refuses as much harm as it holds.
    """
    policy = work.settings.screening
    data, own, note = _rows_to_screen(work)
    arguments = {"data": str(data), "model": work.model, "output": str(work.folder / "screened")}
    if work.offered.base:
        arguments["base"] = work.offered.base
    try:
        found = work.run("screen", arguments)["screening"]
    except JobFailed as failure:
        if failure.error["code"] == "invalid_training_file" or policy.action == "refuse":
            raise
        # Without it the customer knows less; what may be released is the gate's to decide.
        work.event("The upload could not be screened; the job goes on.", level="warn", key="screened")
        skipped = {"status": "failed", "reason": failure.error["message"]}
        work.queue.screened(work.claimed, safety={"screening": skipped})
        return
    told = _report(work, found, own=own, note=note)
    work.event(_told(told), kind="moderation_checks", data=told, key="screened")
    rows = work.stored(work.folder / "screened" / "rows.jsonl", "screenings")
    interval = found["interval"]
    if policy.action == "refuse" and interval is not None and interval[0] > policy.max_share:
        message = (
            f"The upload was refused: at least {100 * interval[0]:.1f} % of its rows are estimated to be harmful, and "
            f"{100 * policy.max_share:.1f} % are allowed. Remove them, and upload the file again."
        )
        kept = {"safety": {"screening": told}, "private": {"rows": rows}}
        raise JobFailed("screening_refused", message, "training_file", **kept)
    work.queue.screened(work.claimed, safety={"screening": told}, private={"rows": rows})


def _rows_to_screen(work: ClaimedWork) -> tuple[Path, int, str]:
    """The job's own rows and those of the jobs that it continues, in one file.

    Returns:
        The file, how many of its lines are the job's own, and a note on the others.
    """
    path, gone, chain = work.folder / "training.jsonl", 0, work.queue.chain(work.claimed)
    with path.open("wb") as target:
        own = _written(work, work.blob(work.job.training_file), target)  # first, so that its rows keep their lines
        for job in chain:
            row = work.queue.file(job.training_file)
            if row is not None and not row.purged:
                _written(work, row.blob, target)
                continue
            gone += 1
            if work.settings.screening.action == "refuse":
                message = (
                    f"A file that {work.job.parent} was trained on was deleted, so that its chain's uploads cannot "
                    f"be screened together. Train on all rows at once, from {work.job.base}."
                )
                raise JobFailed("screening_refused", message, "model")
    if not chain:
        return path, own, ""
    note = "The uploads of the jobs that this one continues were screened together with it"
    return path, own, f"{note}, but for {gone} of {len(chain)}, which are deleted." if gone else f"{note}."


def _written(work: ClaimedWork, blob: str, target: BinaryIO) -> int:
    with work.blobs.open(blob) as file:
        try:
            return write_rows(file, target)
        except DataError as error:
            raise JobFailed("invalid_training_file", str(error), "training_file") from None


def write_rows(file: BinaryIO, target: BinaryIO) -> int:
    """Write every row of an upload in its line (numbering.py), a pair as the row with its preferred answer.

    Args:
        file: The upload, JSON Lines or a JSON list.
        target: Where to.

    Returns:
        Lines written.

    Raises:
        DataError: the upload cannot be read.
    """
    written = 0
    for line, row in numbered(file):
        if isinstance(row, BadRow):
            raise report(NAME, [(line, row)])
        made = preferred_row(row) if is_preference(row) else row
        target.write(b"\n" * (line - 1 - written) + json.dumps(made).encode() + b"\n")
        written = line
    return written


def _report(work: ClaimedWork, found: Mapping[str, Any], *, own: int, note: str) -> dict[str, Any]:
    """What the customer sees, as far as the operator lets them: of the first ``own`` lines, which are the job's."""
    told = {"status": "screened", **{name: found[name] for name in _SHOWN}, "warnings": found["warnings"]}
    if note:
        told["note"] = note
    shown = work.settings.screening.row_report
    if shown == "none":
        return told
    rows = []
    with (work.folder / "screened" / "rows.jsonl").open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            if row["line"] <= own and (shown == "full" or (row["probability"] or 0.0) >= SUSPICIOUS):
                rows.append({name: row[name] for name in ("line", "probability", "flags")})
    rows.sort(key=lambda row: -(row["probability"] or 0.0))
    return told | {"rows": rows[:MOST_ROWS], "num_rows_left_out": max(0, len(rows) - MOST_ROWS)}


def _told(report: Mapping[str, Any]) -> str:
    share, interval = report["estimated_harmful_share"], report["interval"]
    if share is None or interval is None:
        return f"Screened {report['num_rows']} rows; no share of harmful rows can be estimated."
    return (
        f"Screened {report['num_rows']} rows: an estimated {100 * share:.1f} % are harmful (95 % interval "
        f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %)."
    )
