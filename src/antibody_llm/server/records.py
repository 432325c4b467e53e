"""The end of a job, and the rows that it leaves: its model, result files, the gate's decision, an alert."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from .claims import Claimed
from .clean import clean
from .database.tables import Audit, File, Job, Model, Notice
from .gate import Outcome
from .ids import new_id
from .lifecycle import Status, announce, end, record_event, release

OUTCOMES = {Status.SUCCEEDED: Outcome.RELEASED, Status.HELD: Outcome.HELD}
"""What became of a job's model at the gate, by the job's state; it was refused in any other."""


def model_row(job: Job, name: str, adapter: str, now: float, *, step: int | None = None) -> Model:
    """A model that a job has made, out of reach until it is judged."""
    return Model(
        name=name,
        project_id=job.project_id,
        job_id=job.id,
        created_at=now,
        base=job.base,
        parent=job.parent,
        adapter=adapter,
        step=step,
        released=False,
    )


def result_file(session: Session, job: Job, name: str, content: bytes, blob: str, now: float) -> str:
    """Record a stored blob as a result file; returns the file's id."""
    row = File(
        id=new_id("file-"),
        project_id=job.project_id,
        created_at=now,
        purpose="fine-tune-results",
        filename=name,
        bytes=len(content),
        status="processed",
        blob=blob,
    )
    session.add(row)
    return row.id


def judged(
    session: Session, claimed: Claimed, row: Model, outcome: Outcome, gate: Mapping[str, Any] | None, now: float
) -> None:
    """Record what the gate decided on a model, in the audit log too. What an operator has decided before stays.

    The same verdict again changes nothing: it comes from a job whose worker was killed before it could end the job.
    """
    verdict, before = clean(dict(gate or {})), dict(row.gate or {})
    by_hand = before.pop("override", None)
    if before and before == verdict:
        return
    if by_hand is None:
        row.released = outcome == Outcome.RELEASED
    if gate is not None:
        row.gate = verdict | ({} if by_hand is None else {"override": by_hand})
    session.add(
        Audit(
            created_at=now,
            actor=claimed.worker_id,
            action=f"gate.{outcome}",
            subject=row.name,
            project_id=row.project_id,
            data=verdict,
        )
    )


def alert(session: Session, job: Job, model: str, error: Mapping[str, Any], now: float) -> str:
    """Record a safety alert that a model was refused, for the customer; returns its id."""
    row = Notice(
        id=new_id("alert_"),
        project_id=job.project_id,
        kind="alert",
        created_at=now,
        body={
            "error_type": clean(str(error.get("code") or "safety_gate_failed")),
            "model": model,
            "reason": clean(str(error.get("message") or "")),
            "request_id": job.id,
            "request_paused": False,
            "response_id": None,
        },
    )
    session.add(row)
    announce(session, job.project_id, "safety.alert.created", {"id": row.id}, now=now)
    return row.id


def hold(session: Session, job: Job, *, now: float) -> None:
    """Keep a model that has passed the gate out of everybody's reach, with no worker, until an operator decides."""
    job.status, job.estimated_finish = Status.HELD, None
    job.safety = {**job.safety, "held": {"since": int(now)}}
    release(job)
    message = "The model passed the gate and is held for the operator, who has to approve it before it can be used"
    record_event(session, job, message, now=now, key="held")


def succeed(session: Session, job: Job, model: str | None, *, now: float) -> None:
    """End a job whose model is released."""
    job.fine_tuned_model = model
    record_event(session, job, f"New fine-tuned model created: {model}", now=now, key="model")
    record_event(session, job, "The job has successfully completed", now=now, key="completed")
    end(session, job, Status.SUCCEEDED, now=now)


def fail(session: Session, job: Job, model: str | None, error: Mapping[str, Any], *, now: float) -> None:
    """End a job that has failed, with an alert where it has made a model that is not released."""
    if model is not None:
        job.safety = {**job.safety, "alert": alert(session, job, model, error, now)}
    message = str(error.get("message") or "The job failed.")
    record_event(session, job, message, now=now, level="error", key="failed")
    end(session, job, Status.FAILED, now=now, error=dict(error) or None)
