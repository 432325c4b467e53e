"""The states of a job, and what a customer may do in each.

    validating_files -> queued -> running -> succeeded | failed | cancelled
    running -> held -> succeeded | failed | cancelled, where an operator wants to approve each model
    queued, validating_files -> paused at once; running -> pausing -> paused; paused -> queued | validating_files

Every function changes rows of the caller's transaction and records the event that the customer sees.
"""

from enum import StrEnum
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from .clean import clean
from .database.tables import Delivery, Event, Job, Model, Webhook
from .errors import ApiError
from .ids import new_id


class Status(StrEnum):
    """Where a job is."""

    VALIDATING = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    HELD = "held"
    """Trained and measured, and waiting for an operator. The API says ``running``, which its clients wait for."""
    PAUSING = "pausing"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})
ACTIVE = frozenset(Status) - ENDED
CLAIMABLE = frozenset({Status.VALIDATING, Status.QUEUED, Status.RUNNING})


def record_event(
    session: Session,
    job: Job,
    message: str,
    *,
    now: float,
    level: str = "info",
    kind: str = "message",
    data: dict[str, Any] | None = None,
    key: str | None = None,
) -> None:
    """Add an event to a job; nothing where one with that key is there already."""
    if key is not None and session.scalar(select(Event.seq).where(Event.job_id == job.id, Event.key == key)):
        return
    session.add(
        Event(
            id=new_id("ftevent-"),
            job_id=job.id,
            created_at=now,
            level=level,
            type=kind,
            message=clean(message),
            data=clean(data),
            key=key,
        )
    )


def end(session: Session, job: Job, status: Status, *, now: float, error: dict[str, Any] | None = None) -> None:
    """End a job, take its lease away and notify the endpoints that asked for it."""
    job.status, job.error, job.finished_at = status, clean(error), now
    job.estimated_finish = None
    release(job)
    data = {"id": job.id}
    announce(session, job.project_id, f"fine_tuning.job.{status}", data, now=now)


def release(job: Job) -> None:
    """Take the lease away: what its holder still writes is refused."""
    job.token += 1
    job.worker = job.lease_until = None


def announce(session: Session, project_id: str, kind: str, data: dict[str, Any], *, now: float) -> None:
    """Queue an event for every endpoint of the project that asked for its type."""
    event_id = new_id("evt_")
    for hook in session.scalars(select(Webhook).where(Webhook.project_id == project_id, Webhook.deleted_at.is_(None))):
        if kind in hook.event_types:
            session.add(
                Delivery(
                    event_id=event_id, webhook_id=hook.id, type=kind, data=data, created_at=now, due_at=now, attempts=0
                )
            )


def cancel(session: Session, job: Job, *, now: float) -> None:
    """End a job at its customer's wish. A second time changes nothing."""
    if job.status == Status.CANCELLED:
        return
    _refuse_ended(job, "cancelled")
    if job.status == Status.HELD:  # what it has learnt is not kept, and nobody can approve it any more
        result = select(Model).where(Model.job_id == job.id, Model.step.is_(None), Model.deleted_at.is_(None))
        for row in session.scalars(result.with_for_update()):
            row.deleted_at = now
        job.safety = {name: value for name, value in job.safety.items() if name != "held"}
    record_event(session, job, "Fine-tuning job cancelled", now=now)
    end(session, job, Status.CANCELLED, now=now)


def pause(session: Session, job: Job, *, now: float) -> None:
    """Pause a job: at once where no worker holds it, else after its next checkpoint."""
    if job.status in (Status.PAUSED, Status.PAUSING):
        return
    _refuse_ended(job, "paused")
    if job.status == Status.HELD:
        message = f"The job {job.id} is held for the operator: nothing runs that could be paused. Cancel it, or wait."
        raise ApiError(400, message, code="job_is_held")
    if job.status == Status.RUNNING and job.worker is not None:
        job.status = Status.PAUSING
        record_event(session, job, "Pausing: the job stops after its next checkpoint", now=now)
        return
    paused(session, job, now=now)


def paused(session: Session, job: Job, *, now: float) -> None:
    """The job rests, and nobody holds it."""
    job.status = Status.PAUSED
    job.estimated_finish = None
    release(job)
    record_event(session, job, "Fine-tuning job paused", now=now)


def resume(session: Session, job: Job, *, now: float) -> None:
    """Put a paused job back into the queue. One that waits or runs already stays as it is."""
    _refuse_ended(job, "resumed")
    if job.status == Status.PAUSING:  # its worker goes on where it is
        job.status = Status.RUNNING
    elif job.status == Status.PAUSED:
        job.status = Status.VALIDATING if job.validated_at is None else Status.QUEUED
        job.attempts = 0
    else:
        return
    record_event(session, job, "Fine-tuning job resumed", now=now)


def _refuse_ended(job: Job, done: str) -> None:
    if job.status in ENDED:
        raise ApiError(
            400, f"The job {job.id} has ended ({job.status}), so it cannot be {done}.", code="job_has_ended", param=None
        )
