"""``/webhook_endpoints`` and ``/webhook_event_types``."""

from fastapi import APIRouter, Request
from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ...parsing import nearest
from ..auth import Caller, Principal
from ..bodies import WEBHOOK_EVENTS, WebhookCreate, WebhookRotate, WebhookTest, WebhookUpdate
from ..context import context_of
from ..database.tables import Webhook
from ..errors import ApiError, not_found
from ..ids import new_id
from ..objects import Deleted, WebhookList, WebhookObject, WebhookWithSecret, webhook_object
from ..paging import listed, page
from ..webhooks import OLD_SECRET_SECONDS, check_url, living_hooks, new_secret, send_sample
from .shared import Limit

router = APIRouter(tags=["webhooks"])

MAX_ENDPOINTS = 100
"""Endpoints that a project may have."""


class EventTypes(BaseModel):
    """Names of events."""

    object: str = "list"
    data: list[str]


class TestResult(BaseModel):
    """What an endpoint answered."""

    object: str = "webhook_endpoint.test"
    event_type: str
    status_code: int
    success: bool
    webhook_endpoint_id: str


@router.get("/webhook_event_types", response_model=EventTypes)
def event_types(caller: Caller) -> dict[str, object]:
    """The events that this server sends."""
    return {"object": "list", "data": list(WEBHOOK_EVENTS)}


@router.post("/webhook_endpoints", response_model=WebhookWithSecret)
def create(request: Request, caller: Caller, body: WebhookCreate) -> dict[str, object]:
    """Have events sent to a URL. The signing secret is shown now and never again."""
    context = context_of(request)
    _check_events(body.event_types)
    check_url(body.url, insecure=context.settings.webhooks.allow_insecure)
    with context.database.write() as session:
        num = session.scalar(select(func.count()).select_from(living_hooks(caller.project_id).subquery())) or 0
        if num >= MAX_ENDPOINTS:
            message = f"The project has {num} endpoints, and may have no more. Delete one first."
            raise ApiError(400, message, code="webhook_limit_exceeded")
        now = context.database.now(session)
        row = Webhook(
            id=new_id("we_"),
            project_id=caller.project_id,
            created_at=now,
            updated_at=now,
            name=body.name,
            url=body.url,
            event_types=list(dict.fromkeys(body.event_types)),
            secret=new_secret(),
        )
        session.add(row)
        return webhook_object(row) | {"signing_secret": row.secret}


@router.get("/webhook_endpoints", response_model=WebhookList)
def index(request: Request, caller: Caller, after: str | None = None, limit: Limit = 20) -> dict[str, object]:
    """The project's endpoints, newest first."""
    with context_of(request).database.read() as session:
        rows, more = page(session, living_hooks(caller.project_id), Webhook, after=after, limit=limit)
        return listed([webhook_object(row) for row in rows], has_more=more)


@router.get("/webhook_endpoints/{webhook_id}", response_model=WebhookObject)
def retrieve(request: Request, caller: Caller, webhook_id: str) -> dict[str, object]:
    """One endpoint."""
    with context_of(request).database.read() as session:
        return webhook_object(_own(session, caller, webhook_id))


@router.post("/webhook_endpoints/{webhook_id}", response_model=WebhookObject)
def update(request: Request, caller: Caller, webhook_id: str, body: WebhookUpdate) -> dict[str, object]:
    """Change an endpoint."""
    context = context_of(request)
    changes = {name: value for name, value in body.model_dump().items() if value is not None}
    if body.event_types is not None:
        _check_events(body.event_types)
    if body.url is not None:
        check_url(body.url, insecure=context.settings.webhooks.allow_insecure)
    with context.database.write() as session:
        row = _own(session, caller, webhook_id)
        if any(getattr(row, name) != value for name, value in changes.items()):
            row.updated_at = context.database.now(session)
        for name, value in changes.items():
            setattr(row, name, value)
        return webhook_object(row)


@router.delete("/webhook_endpoints/{webhook_id}", response_model=Deleted)
def delete(request: Request, caller: Caller, webhook_id: str) -> dict[str, object]:
    """Send nothing more to an endpoint."""
    context = context_of(request)
    with context.database.write() as session:
        row = _own(session, caller, webhook_id)
        row.deleted_at = context.database.now(session)
        return {"id": row.id, "object": "webhook_endpoint.deleted", "deleted": True}


@router.post("/webhook_endpoints/{webhook_id}/rotate_secret", response_model=WebhookWithSecret)
def rotate(request: Request, caller: Caller, webhook_id: str, body: WebhookRotate | None = None) -> dict[str, object]:
    """Replace the signing secret; the old one signs too for 24 hours where that is asked."""
    context = context_of(request)
    with context.database.write() as session:
        row = _own(session, caller, webhook_id)
        now = context.database.now(session)
        keep = body is not None and bool(body.keep_old_secret_active_for_24_hours)
        row.old_secret = row.secret if keep else None
        row.old_secret_until = now + OLD_SECRET_SECONDS if keep else None
        row.secret, row.updated_at = new_secret(), now
        return webhook_object(row) | {"signing_secret": row.secret}


@router.post("/webhook_endpoints/{webhook_id}/test", response_model=TestResult)
def test(request: Request, caller: Caller, webhook_id: str, body: WebhookTest) -> dict[str, object]:
    """Send a sample event, once."""
    context = context_of(request)
    _check_events([body.event_type])
    with context.database.read() as session:
        row = _own(session, caller, webhook_id)
    status = send_sample(context, row, body.event_type)
    if status is None:
        message = "The endpoint cannot be reached. Check its URL, its certificate and that it is public."
        raise ApiError(400, message, code="webhook_unreachable")
    return {
        "object": "webhook_endpoint.test",
        "event_type": body.event_type,
        "status_code": status,
        "success": True,
        "webhook_endpoint_id": row.id,
    }


def _check_events(names: list[str]) -> None:
    """Refuse events that this server never sends: a receiver would wait for them in vain."""
    for name in names:
        if name not in WEBHOOK_EVENTS:
            raise ApiError(
                400,
                f"No event {name[:100]!r} is sent here{nearest(name, WEBHOOK_EVENTS)} Events: "
                f"{', '.join(WEBHOOK_EVENTS)}.",
                code="unknown_event_type",
                param="event_types",
            )


def _own(session: Session, caller: Principal, webhook_id: str) -> Webhook:
    row: Webhook | None = session.scalars(living_hooks(caller.project_id).where(Webhook.id == webhook_id)).first()
    if row is None:
        raise not_found("webhook endpoint", webhook_id)
    return row
