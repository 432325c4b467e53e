"""``/fine_tuning/jobs``."""

import re
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import Select, exists, func, select
from sqlalchemy.orm import Session, aliased

from ..auth import Caller, Principal
from ..bodies import JobCreate
from ..context import context_of
from ..database.tables import Checkpoint, Event, Job, JobLabel
from ..errors import ApiError
from ..jobs import create_job, own_job
from ..lifecycle import cancel, pause, resume
from ..objects import (
    CheckpointList,
    EventList,
    JobList,
    JobObject,
    checkpoint_object,
    event_object,
    job_object,
)
from ..paging import listed, page
from .shared import Limit

router = APIRouter(prefix="/fine_tuning/jobs", tags=["fine-tuning"])

RARE = 1000
"""Labels with fewer jobs than this are counted to the end."""
METADATA = re.compile(r"metadata\[(.{1,64})\]", re.DOTALL)


@router.post("", response_model=JobObject)
def create(request: Request, response: Response, caller: Caller, body: JobCreate) -> dict[str, object]:
    """Create a job. A repetition of the request, which the client sends by itself, gives the same job."""
    count = request.headers.get("x-stainless-retry-count", "")
    job, repeated = create_job(
        context_of(request), caller, body, repetition=int(count) if count.isascii() and count.isdigit() else None
    )
    if repeated:
        response.headers["x-antibody-replayed"] = "true"
    return job_object(job)


LABELS = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "required": False,
            "style": "deepObject",
            "explode": True,
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
        }
    ]
}


@router.get("", response_model=JobList, openapi_extra=LABELS)
def index(request: Request, caller: Caller, after: str | None = None, limit: Limit = 20) -> dict[str, object]:
    """The project's jobs, newest first; with ``metadata[k]=v`` those that have it, with ``metadata=null`` those that
    have none.
    """
    with context_of(request).database.read() as session:
        query, labels = select(Job).where(Job.project_id == caller.project_id), []
        for name, value in request.query_params.multi_items():
            if (label := METADATA.fullmatch(name)) is not None:
                labels.append((label[1], value))
            elif name == "metadata" and value == "null":
                query = query.where(Job.labels.is_(None))
            elif name == "metadata":
                raise ApiError(400, "metadata is null, or metadata[KEY]=VALUE.", code="invalid_value", param="metadata")
        order: Any = Job.seq
        if labels:
            query, order = _labelled(session, caller, query, labels)
        rows, more = page(session, query, Job, after=after, limit=limit, order=order)
        return listed([job_object(row) for row in rows], has_more=more)


def _labelled(
    session: Session, caller: Principal, query: Select[Any], labels: list[tuple[str, str]]
) -> tuple[Select[Any], Any]:
    """Jobs with all of some labels, and the column to page by.

    The rarest label leads: its range of the index is read in the order of the list and no further than the page goes.
    """

    def having(table: Any, label: tuple[str, str]) -> tuple[Any, ...]:
        return (table.project_id == caller.project_id, table.name == label[0], table.value == label[1])

    def number(label: tuple[str, str]) -> int:
        some = select(JobLabel.job_seq).where(*having(JobLabel, label)).limit(RARE).subquery()
        return session.scalar(select(func.count()).select_from(some)) or 0

    first, *others = sorted(labels, key=number) if len(labels) > 1 else labels
    query = query.join(JobLabel, JobLabel.job_seq == Job.seq).where(*having(JobLabel, first))
    for label in others:
        other = aliased(JobLabel)
        query = query.where(exists().where(other.job_seq == JobLabel.job_seq, *having(other, label)))
    return query, JobLabel.job_seq


@router.get("/{job_id}", response_model=JobObject)
def retrieve(request: Request, caller: Caller, job_id: str) -> dict[str, object]:
    """One job."""
    with context_of(request).database.read() as session:
        return job_object(own_job(session, caller, job_id))


@router.post("/{job_id}/cancel", response_model=JobObject)
def cancel_job(request: Request, caller: Caller, job_id: str) -> dict[str, object]:
    """Cancel a job. What it has learnt is not kept, its checkpoints are."""
    return _changed(request, caller, job_id, cancel)


@router.post("/{job_id}/pause", response_model=JobObject)
def pause_job(request: Request, caller: Caller, job_id: str) -> dict[str, object]:
    """Pause a job; one that runs is ``pausing`` until its next checkpoint."""
    return _changed(request, caller, job_id, pause)


@router.post("/{job_id}/resume", response_model=JobObject)
def resume_job(request: Request, caller: Caller, job_id: str) -> dict[str, object]:
    """Put a paused job back into the queue."""
    return _changed(request, caller, job_id, resume)


def _changed(request: Request, caller: Principal, job_id: str, change: Callable[..., None]) -> dict[str, Any]:
    context = context_of(request)
    with context.database.write() as session:
        job = own_job(session, caller, job_id, lock=True)
        change(session, job, now=context.database.now(session))
        return job_object(job)


@router.get("/{job_id}/events", response_model=EventList)
def events(
    request: Request, caller: Caller, job_id: str, after: str | None = None, limit: Limit = 20
) -> dict[str, object]:
    """What happened to a job, newest first."""
    with context_of(request).database.read() as session:
        rows, more = _of_job(session, caller, job_id, Event, after, limit)
        return listed([event_object(row) for row in rows], has_more=more)


@router.get("/{job_id}/checkpoints", response_model=CheckpointList)
def checkpoints(
    request: Request, caller: Caller, job_id: str, after: str | None = None, limit: Limit = 10
) -> dict[str, object]:
    """The checkpoints of a job, newest first. Each can be asked once the gate has released it."""
    with context_of(request).database.read() as session:
        rows, more = _of_job(session, caller, job_id, Checkpoint, after, limit)
        return listed([checkpoint_object(row) for row in rows], has_more=more)


def _of_job(
    session: Session, caller: Principal, job_id: str, table: Any, after: str | None, limit: int
) -> tuple[list[Any], bool]:
    job = own_job(session, caller, job_id)
    return page(session, select(table).where(table.job_id == job.id), table, after=after, limit=limit)
