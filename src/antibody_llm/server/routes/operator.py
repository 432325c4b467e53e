"""``/operator``: projects, keys, held models and the audit log, for an operator's key. Ours, not the hosted API's."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ..auth import Operator, Principal, new_key, operator_keys
from ..bodies import Decision, KeyCreate, ProjectCreate
from ..clean import clean
from ..context import context_of
from ..database.tables import Audit, Job, Key, Organization, Project
from ..decisions import decide_by_hand
from ..errors import ApiError, not_found
from ..ids import new_id
from ..objects import job_object
from .shared import Limit

router = APIRouter(prefix="/operator", tags=["operator"])


class Item(BaseModel):
    """An object of the operator's own."""

    model_config = {"extra": "allow"}
    object: str


class Items(BaseModel):
    """A list of them."""

    object: str = "list"
    data: list[dict[str, Any]]
    has_more: bool = False


@router.post("/projects", response_model=Item)
def create_project(request: Request, operator: Operator, body: ProjectCreate) -> dict[str, object]:
    """Add a project, and its organisation where that is new."""
    context = context_of(request)
    with context.database.write() as session:
        now = context.database.now(session)
        owner = session.scalars(select(Organization).where(Organization.name == body.organization)).first()
        if owner is None:
            owner = Organization(id=new_id("org-"), name=body.organization, created_at=now)
            session.add(owner)
            session.flush()
        row = Project(id=new_id("proj_"), organization_id=owner.id, name=body.name, created_at=now)
        session.add(row)
        _audit(session, operator, "project.created", row.id, now, project_id=row.id)
        return _project(row, owner.name)


@router.get("/projects", response_model=Items)
def projects(request: Request, operator: Operator) -> dict[str, object]:
    """Every project."""
    with context_of(request).database.read() as session:
        rows = session.execute(select(Project, Organization.name).join(Organization).order_by(Project.created_at))
        return {"object": "list", "data": [_project(row, name) for row, name in rows]}


@router.post("/keys", response_model=Item)
def create_key(request: Request, operator: Operator, body: KeyCreate) -> dict[str, object]:
    """Make an API key. It is shown now and never again."""
    context = context_of(request)
    with context.database.write() as session:
        now = context.database.now(session)
        project_id = body.project_id or operator.project_id
        if session.get(Project, project_id) is None:
            raise ApiError(400, f"No such project: {project_id!r}.", code="project_not_found", param="project_id")
        alive = select(func.count()).where(Key.project_id == project_id, Key.revoked_at.is_(None))
        if (session.scalar(alive) or 0) >= context.settings.limits.keys_per_project:
            raise ApiError(400, "The project has too many keys. Revoke some.", code="key_limit_exceeded")
        row, secret = new_key(
            session,
            project_id,
            scope=body.scope,
            name=body.name,
            actor=operator.key_id,
            now=now,
            expires_at=None if body.expires_in is None else now + body.expires_in,
        )
        return _key(row) | {"key": secret}


@router.get("/keys", response_model=Items)
def keys(request: Request, operator: Operator) -> dict[str, object]:
    """Every key, without its secret."""
    with context_of(request).database.read() as session:
        return {"object": "list", "data": [_key(row) for row in session.scalars(select(Key).order_by(Key.created_at))]}


@router.post("/keys/{key_id}/rotate", response_model=Item)
def rotate_key(request: Request, operator: Operator, key_id: str) -> dict[str, object]:
    """Replace a key at once: the old one no longer works."""
    context = context_of(request)
    with context.database.write() as session:
        now = context.database.now(session)
        old = _living_key(session, key_id)
        row, secret = new_key(
            session,
            old.project_id,
            scope="operator" if old.scope == "operator" else "customer",
            name=old.name,
            actor=operator.key_id,
            now=now,
            expires_at=old.expires_at,
        )
        old.revoked_at = now
        _audit(session, operator, "key.rotated", old.id, now, project_id=old.project_id, data={"by": row.id})
        return _key(row) | {"key": secret}


@router.delete("/keys/{key_id}", response_model=Item)
def revoke_key(request: Request, operator: Operator, key_id: str) -> dict[str, object]:
    """Revoke a key. The last one with which an operator can sign in stays."""
    context = context_of(request)
    with context.database.write() as session:
        now = context.database.now(session)
        row = _living_key(session, key_id)
        if [each.id for each in session.scalars(operator_keys(now).limit(2))] == [row.id]:
            raise ApiError(400, "This is the last operator's key. Make another one first.", code="last_operator_key")
        row.revoked_at = now
        _audit(session, operator, "key.revoked", row.id, now, project_id=row.project_id)
        return _key(row)


@router.get("/jobs/{job_id}", response_model=Item)
def job(request: Request, operator: Operator, job_id: str) -> dict[str, object]:
    """A job of any project, with what only the operator may see."""
    with context_of(request).database.read() as session:
        row = session.scalars(select(Job).where(Job.id == job_id)).first()
        if row is None:
            raise not_found("fine-tuning job", job_id)
        return job_object(row) | {"project_id": row.project_id, "worker": row.worker, "private": row.private}


@router.post("/models/{model:path}/approve", response_model=Item)
def approve(request: Request, operator: Operator, model: str, body: Decision) -> dict[str, object]:
    """Release a model that the gate refused or holds, with a written reason, which the audit log keeps."""
    return _decide(request, operator, model, body, released=True)


@router.post("/models/{model:path}/reject", response_model=Item)
def reject(request: Request, operator: Operator, model: str, body: Decision) -> dict[str, object]:
    """Reject a held model or withdraw a released one, with a written reason: nobody can ask or continue it."""
    return _decide(request, operator, model, body, released=False)


def _decide(request: Request, operator: Principal, model: str, body: Decision, *, released: bool) -> dict[str, object]:
    context = context_of(request)
    with context.database.write() as session:
        now = context.database.now(session)
        row = decide_by_hand(session, operator, model, released=released, reason=body.reason, now=now)
        return {"object": "operator.model", "id": row.name, "released": row.released, "gate": row.gate}


@router.get("/audit", response_model=Items)
def audit(
    request: Request, operator: Operator, before: int | None = None, subject: str | None = None, limit: Limit = 100
) -> dict[str, object]:
    """The audit log, newest first; ``before`` names the oldest entry that was read."""
    with context_of(request).database.read() as session:
        query = select(Audit).order_by(Audit.seq.desc()).limit(limit + 1)
        if before is not None:
            query = query.where(Audit.seq < min(before, 2**62))
        if subject is not None:
            query = query.where(Audit.subject == subject)
        rows = session.scalars(query).all()
        entries = [
            {
                "id": row.seq,
                "created_at": int(row.created_at),
                "actor": row.actor,
                "action": row.action,
                "subject": row.subject,
                "project_id": row.project_id,
                "data": row.data,
            }
            for row in rows[:limit]
        ]
        return {"object": "list", "data": entries, "has_more": len(rows) > limit}


def _living_key(session: Session, key_id: str) -> Key:
    row = session.scalars(select(Key).where(Key.id == key_id, Key.revoked_at.is_(None))).first()
    if row is None:
        raise not_found("key", key_id)
    return row


def _audit(
    session: Session,
    operator: Principal,
    action: str,
    subject: str,
    now: float,
    *,
    project_id: str,
    data: dict[str, Any] | None = None,
) -> None:
    session.add(
        Audit(
            created_at=now,
            actor=operator.key_id,
            action=action,
            subject=subject,
            project_id=project_id,
            data=clean(data),
        )
    )


def _project(row: Project, organization: str) -> dict[str, Any]:
    return {
        "object": "operator.project",
        "id": row.id,
        "name": row.name,
        "organization": organization,
        "organization_id": row.organization_id,
        "created_at": int(row.created_at),
    }


def _key(row: Key) -> dict[str, Any]:
    return {
        "object": "operator.key",
        "id": row.id,
        "name": row.name,
        "scope": row.scope,
        "hint": row.hint,
        "project_id": row.project_id,
        "created_at": int(row.created_at),
        "expires_at": None if row.expires_at is None else int(row.expires_at),
        "revoked_at": None if row.revoked_at is None else int(row.revoked_at),
    }
