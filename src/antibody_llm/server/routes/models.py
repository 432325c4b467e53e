"""``/models`` and ``/fine_tuning/checkpoints/{model}/permissions``.

A model's name may hold slashes, which the client sends as %2F and the framework decodes: hence the path converters.
"""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from sqlalchemy import select

from ..auth import Caller
from ..bodies import PermissionCreate
from ..context import context_of
from ..database.tables import Audit, Job, Model, Permission, Project
from ..errors import ApiError, not_found
from ..ids import new_id
from ..lifecycle import Status
from ..models import own_model, usable, visible
from ..objects import (
    Deleted,
    ModelList,
    ModelObject,
    PermissionList,
    model_object,
    permission_object,
)
from ..paging import listed, page

router = APIRouter()

OFFERED_SINCE = 1735689600
"""``created`` of base models, which nobody knows: 2025-01-01."""


@router.get("/models", response_model=ModelList, tags=["models"])
def index(request: Request, caller: Caller) -> dict[str, object]:
    """The offered base models, and the project's fine-tuned ones that are released."""
    context = context_of(request)
    with context.database.read() as session:
        rows = session.scalars(visible(caller).order_by(Model.seq.desc())).all()
    offered = [_offered(model.name) for model in context.settings.models]
    return listed([*offered, *(model_object(row, caller.organization) for row in rows)], has_more=False)


@router.get("/models/{model:path}", response_model=ModelObject, tags=["models"])
def retrieve(request: Request, caller: Caller, model: str) -> dict[str, object]:
    """One model."""
    context = context_of(request)
    with context.database.read() as session:
        found = usable(session, context, caller, model)
    return _offered(model) if found.row is None else model_object(found.row, caller.organization)


@router.delete("/models/{model:path}", response_model=Deleted, tags=["models"])
def delete(request: Request, caller: Caller, model: str) -> dict[str, object]:
    """Delete a fine-tuned model of the project. Its weights stay while a job or another model goes on from them."""
    context = context_of(request)
    if context.settings.model(model) is not None:
        raise ApiError(403, "A base model cannot be deleted.", code="not_deletable", param="model")
    with context.database.write() as session:
        row = own_model(session, caller, model)
        job = session.scalars(select(Job).where(Job.id == row.job_id).with_for_update()).first()
        if row.step is None and job is not None and job.status == Status.HELD:
            message = f"The model is held for the operator. Cancel the job {job.id} to be rid of it."
            raise ApiError(400, message, code="model_is_held", param="model")
        now = context.database.now(session)
        row.deleted_at = now
        session.add(
            Audit(
                created_at=now,
                actor=caller.key_id,
                action="model.deleted",
                subject=row.name,
                project_id=row.project_id,
            )
        )
        return {"id": row.name, "object": "model", "deleted": True}


def _offered(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": OFFERED_SINCE, "owned_by": "system"}


PERMISSIONS = "/fine_tuning/checkpoints/{model:path}/permissions"


@router.get(PERMISSIONS, response_model=PermissionList, tags=["permissions"])
def permissions(
    request: Request,
    caller: Caller,
    model: str,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 10,
    order: Literal["ascending", "descending"] = "descending",
    project_id: str | None = None,
) -> dict[str, object]:
    """Projects that may use a model of this project."""
    with context_of(request).database.read() as session:
        row = own_model(session, caller, model)
        query = select(Permission).where(Permission.model == row.name)
        if project_id is not None:
            query = query.where(Permission.project_id == project_id)
        newest_first = order == "descending"
        rows, more = page(session, query, Permission, after=after, limit=limit, newest_first=newest_first)
        return listed([permission_object(each) for each in rows], has_more=more)


@router.post(PERMISSIONS, response_model=PermissionList, tags=["permissions"])
def permit(request: Request, caller: Caller, model: str, body: PermissionCreate) -> dict[str, object]:
    """Let other projects of the organisation use a model. One that may already stays as it is."""
    context = context_of(request)
    with context.database.write() as session:
        row = own_model(session, caller, model)
        now = context.database.now(session)
        made = []
        for project_id in dict.fromkeys(body.project_ids):
            project = session.get(Project, project_id)
            if project is None or project.organization_id != caller.organization_id:
                message = f"project_ids: no such project in this organisation: {project_id!r}."
                raise ApiError(400, message, code="project_not_found", param="project_ids")
            same = select(Permission).where(Permission.model == row.name, Permission.project_id == project_id)
            permission = session.scalars(same).first()
            if permission is None:
                permission = Permission(id=new_id("cp_"), model=row.name, project_id=project_id, created_at=now)
                session.add(permission)
            made.append(permission_object(permission))
        return listed(made, has_more=False)


@router.delete(PERMISSIONS + "/{permission_id}", response_model=Deleted, tags=["permissions"])
def forbid(request: Request, caller: Caller, model: str, permission_id: str) -> dict[str, object]:
    """Take a permission back."""
    with context_of(request).database.write() as session:
        row = own_model(session, caller, model)
        query = select(Permission).where(Permission.id == permission_id, Permission.model == row.name)
        permission = session.scalars(query).first()
        if permission is None:
            raise not_found("permission", permission_id)
        session.delete(permission)
        return {"id": permission_id, "object": "checkpoint.permission", "deleted": True}
