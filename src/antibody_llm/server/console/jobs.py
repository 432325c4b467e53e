"""Pages of jobs: the list, one job with its progress, and its suspicious rows."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from ..context import Context, context_of
from ..database.tables import Event, Job
from ..errors import ApiError
from ..jobs import no_job
from ..paging import page as page_of
from .charts import Bar, Tick, histogram
from .render import Page, page
from .rows import ROWS_PER_PAGE, reveal, suspicious
from .views import (
    MODEL_STATES,
    is_live,
    jobs_of,
    loss_curve,
    losses,
    models,
    progress,
    projects,
    scores,
    stages,
    status,
)
from .visits import AnOperator, Form, Someone, Visitor

router = APIRouter(prefix="/console/jobs", route_class=Page)

JOBS_PER_PAGE, NEWEST_EVENTS = 25, 12
SAID = {
    "approve": "The model is released.",
    "reject": "The model is out of everybody's reach.",
}


@router.get("")
def index(request: Request, someone: Someone, after: str | None = None, project: str | None = None) -> Response:
    """The jobs that one may see, newest first."""
    with context_of(request).database.read() as session:
        query = jobs_of(someone, project)
        rows, more = page_of(session, query, Job, after=after, limit=JOBS_PER_PAGE)
        return page(
            "jobs",
            someone,
            jobs=[(job, status(job)) for job in rows],
            more=rows[-1].id if more else None,
            first=after is None,
            projects=projects(session) if someone.is_operator else {},
            project=project,
        )


@router.get("/{job_id}")
def retrieve(request: Request, someone: Someone, job_id: str, said: str = "") -> Response:
    """One job."""
    context = context_of(request)
    with context.database.read() as session:
        job = find(session, someone, job_id)
        values = _live(context, session, job)
        done = values["progress"]
        return page(
            "job",
            someone,
            **values,
            said=SAID.get(said),
            models=models(session, job),
            states=MODEL_STATES,
            scores=scores(job, done and done.step),
            weights=_weights(context, someone, job),
            project=projects(session).get(job.project_id, job.project_id) if someone.is_operator else "",
        )


@router.get("/{job_id}/live")
def live(request: Request, someone: Someone, job_id: str) -> Response:
    """The part of a job's page that changes while it runs."""
    context = context_of(request)
    with context.database.read() as session:
        return page("live", someone, **_live(context, session, find(session, someone, job_id)))


@router.get("/{job_id}/rows")
def rows(request: Request, someone: Someone, job_id: str, page: Annotated[int, Query(ge=1, le=1000)] = 1) -> Response:
    """The suspicious rows of a job, without their texts."""
    context = context_of(request)
    with context.database.read() as session:
        job = find(session, someone, job_id)
    return _rows(context, someone, job, page, texts=None)


@router.post("/{job_id}/rows")
def reveal_rows(request: Request, operator: AnOperator, form: Form, job_id: str) -> Response:
    """A page of the suspicious rows with their texts, once the audit log knows who reads them."""
    context = context_of(request)
    number = form.get("page", "1")
    if not (number.isascii() and number.isdigit()):
        raise ApiError(400, "page is no number.", code="invalid_value", param="page")
    with context.database.read() as session:
        job = find(session, operator, job_id)
    shown, number_shown, _ = _part(context, operator, job, int(number))
    texts = reveal(context, operator.principal, job, [row.line for row in shown])
    return _rows(context, operator, job, number_shown, texts=texts)


def find(session: Session, someone: Visitor, job_id: str) -> Job:
    """A job that somebody may see.

    Raises:
        ApiError: 404: there is none, or it is another's.
    """
    row: Job | None = session.scalars(jobs_of(someone).where(Job.id == job_id)).first()
    if row is None:
        raise no_job(job_id)
    return row


def _live(context: Context, session: Session, job: Job) -> dict[str, Any]:
    """What changes while a job runs."""
    points = losses(context, session, job)
    events = select(Event).where(Event.job_id == job.id).order_by(Event.seq.desc()).limit(NEWEST_EVENTS)
    return {
        "job": job,
        "status": status(job),
        "live": is_live(job),
        "stages": stages(job),
        "progress": progress(session, job),
        "points": points,
        "chart": loss_curve(points),
        "events": session.scalars(events).all(),
    }


def _part(context: Context, someone: Visitor, job: Job, number: int) -> tuple[list[Any], int, int]:
    """A page of rows, its number and how many there are."""
    found = suspicious(context, someone, job)
    num_pages = max(1, -(-len(found) // ROWS_PER_PAGE))
    number = min(max(1, number), num_pages)
    return found[(number - 1) * ROWS_PER_PAGE : number * ROWS_PER_PAGE], number, num_pages


def _rows(context: Context, someone: Visitor, job: Job, number: int, *, texts: Any) -> Response:
    shown, number, num_pages = _part(context, someone, job, number)
    return page("rows", someone, job=job, rows=shown, number=number, num_pages=num_pages, texts=texts)


@dataclass(frozen=True)
class Weights:
    """How the defence weighted rows."""

    bars: tuple[Bar, ...]
    """The weights of the last epoch."""
    ticks: tuple[Tick, ...]
    epochs: list[dict[str, Any]]
    has_scores: bool


def _weights(context: Context, someone: Visitor, job: Job) -> Weights | None:
    """The histogram of weights; a customer sees it where the operator reports anything of single rows."""
    found = job.private.get("weights")
    if not found or not found["epochs"]:
        return None
    if not someone.is_operator and context.settings.screening.row_report == "none":
        return None
    centres, epochs = found["centres"], found["epochs"]
    labels = [f"{centre:g}" if centre >= 1 else f"1/{1 / centre:g}" for centre in centres]
    labels[0], labels[-1] = f"≤{labels[0]}", f"≥{labels[-1]}"
    bars, ticks = histogram(labels, epochs[-1]["counts"])
    return Weights(bars, ticks, epochs, any(epoch["scores"] for epoch in epochs))
