"""Pages of operators: held models, decisions on models, and the audit log."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError
from sqlalchemy import select

from ..bodies import Decision
from ..context import context_of
from ..database.tables import Audit, Job
from ..decisions import decide_by_hand
from ..errors import ApiError
from ..lifecycle import Status
from .jobs import SAID
from .render import Page, page, see
from .views import models, projects
from .visits import AnOperator, Form

router = APIRouter(prefix="/console", route_class=Page)

HELD_AT_ONCE, ENTRIES_PER_PAGE = 20, 50


@router.get("/held")
def held(request: Request, operator: AnOperator) -> Response:
    """Models that wait for a decision, longest first."""
    context = context_of(request)
    with context.database.read() as session:
        waiting = select(Job).where(Job.status == Status.HELD).order_by(Job.seq).limit(HELD_AT_ONCE + 1)
        jobs = session.scalars(waiting).all()
        results = [(job, model) for job in jobs[:HELD_AT_ONCE] for model in models(session, job) if model.step is None]
        return page(
            "held",
            operator,
            held=results,
            more=len(jobs) > HELD_AT_ONCE,
            holding=context.settings.gate.hold,
            projects=projects(session),
        )


@router.post("/decisions")
def decide(request: Request, operator: AnOperator, form: Form) -> Response:
    """Approve or reject a model, with a written reason."""
    context, verb = context_of(request), form.get("decision", "")
    if verb not in SAID:
        raise ApiError(400, "The decision is approve or reject.", code="invalid_value", param="decision")
    try:
        reason = Decision.model_validate({"reason": form.get("reason", "")}).reason
    except ValidationError:
        message = "The decision needs a written reason of 3 to 4000 characters. Go back and write one."
        raise ApiError(400, message, code="invalid_value", param="reason") from None
    with context.database.write() as session:
        now = context.database.now(session)
        row = decide_by_hand(
            session, operator.principal, form.get("model", ""), released=verb == "approve", reason=reason, now=now
        )
        return see(f"/console/jobs/{row.job_id}?said={verb}")


@router.get("/audit")
def audit(
    request: Request,
    operator: AnOperator,
    before: Annotated[int | None, Query(ge=0, le=2**62)] = None,
    subject: str | None = None,
) -> Response:
    """The audit log, newest first."""
    with context_of(request).database.read() as session:
        query = select(Audit).order_by(Audit.seq.desc()).limit(ENTRIES_PER_PAGE + 1)
        if before is not None:
            query = query.where(Audit.seq < before)
        if subject:
            query = query.where(Audit.subject == subject)
        rows = session.scalars(query).all()
        return page(
            "audit",
            operator,
            entries=rows[:ENTRIES_PER_PAGE],
            more=rows[ENTRIES_PER_PAGE - 1].seq if len(rows) > ENTRIES_PER_PAGE else None,
            first=before is None,
            subject=subject,
            projects=projects(session),
        )
