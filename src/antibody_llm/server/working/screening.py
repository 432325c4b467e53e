"""Screening: which rows of an upload are suspicious, before anything is trained on them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...data.preferences import is_preference, preferred_row
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
    earlier = [job.training_file for job in work.queue.chain(work.claimed)]
    # The job's own rows first, so that they keep their lines.
    data = with_preferred_answers(work.fetched([work.job.training_file, *earlier], "training.jsonl"))
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
    report = _report(work, found, chained=bool(earlier))
    work.event(_told(report), kind="moderation_checks", data=report, key="screened")
    rows = work.stored(work.folder / "screened" / "rows.jsonl", "screenings")
    interval = found["interval"]
    if policy.action == "refuse" and interval is not None and interval[0] > policy.max_share:
        message = (
            f"The upload was refused: at least {100 * interval[0]:.1f} % of its rows are estimated to be harmful, and "
            f"{100 * policy.max_share:.1f} % are allowed. Remove them, and upload the file again."
        )
        told = {"safety": {"screening": report}, "private": {"rows": rows}}
        raise JobFailed("screening_refused", message, "training_file", **told)
    work.queue.screened(work.claimed, safety={"screening": report}, private={"rows": rows})


def with_preferred_answers(path: Path) -> Path:
    """A file of rows in which every pair of preferences is a row with the preferred answer, each in its line.

    Without a pair, the file itself.
    """
    made, found = path.with_name(f"preferred-{path.name}"), False
    with path.open("rb") as source, made.open("wb") as target:
        for line in source:
            row: Any = json.loads(line) if line.strip() else None
            if is_preference(row):
                found, line = True, json.dumps(preferred_row(row), ensure_ascii=False).encode() + b"\n"
            target.write(line)
    if not found:
        made.unlink()
        return path
    return made.replace(path)


def _report(work: ClaimedWork, found: Mapping[str, Any], *, chained: bool) -> dict[str, Any]:
    """What the customer sees, as far as the operator lets them."""
    report = {"status": "screened", **{name: found[name] for name in _SHOWN}, "warnings": found["warnings"]}
    if chained:
        report["note"] = "The uploads of the jobs that this one continues were screened together with it."
    shown = work.settings.screening.row_report
    if shown == "none":
        return report
    rows = []
    own = sum(piece.count(b"\n") for piece in work.blobs.chunks(work.blob(work.job.training_file))) + 1
    with (work.folder / "screened" / "rows.jsonl").open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            if row["line"] <= own and (shown == "full" or (row["probability"] or 0.0) >= SUSPICIOUS):
                rows.append({name: row[name] for name in ("line", "probability", "flags")})
    rows.sort(key=lambda row: -(row["probability"] or 0.0))
    return report | {"rows": rows[:MOST_ROWS], "num_rows_left_out": max(0, len(rows) - MOST_ROWS)}


def _told(report: Mapping[str, Any]) -> str:
    share, interval = report["estimated_harmful_share"], report["interval"]
    if share is None or interval is None:
        return f"Screened {report['num_rows']} rows; no share of harmful rows can be estimated."
    return (
        f"Screened {report['num_rows']} rows: an estimated {100 * share:.1f} % are harmful (95 % interval "
        f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %)."
    )
