"""``/safety/alerts`` and ``/safety/cases``: what the server noticed about a project."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select

from ..auth import Caller, Principal
from ..context import context_of
from ..database.tables import Notice
from ..errors import not_found

router = APIRouter(prefix="/safety", tags=["safety"])


class NoticeObject(BaseModel):
    """An alert or a case; the other fields depend on which."""

    model_config = ConfigDict(extra="allow")
    id: str
    object: str
    created_at: int


@router.get("/alerts/{alert_id}", response_model=NoticeObject)
def alert(request: Request, caller: Caller, alert_id: str) -> dict[str, Any]:
    """One alert."""
    return _notice(request, caller, "alert", alert_id)


@router.get("/cases/{case_id}", response_model=NoticeObject)
def case(request: Request, caller: Caller, case_id: str) -> dict[str, Any]:
    """One case."""
    return _notice(request, caller, "case", case_id)


def _notice(request: Request, caller: Principal, kind: str, notice_id: str) -> dict[str, Any]:
    query = select(Notice).where(Notice.id == notice_id, Notice.kind == kind, Notice.project_id == caller.project_id)
    with context_of(request).database.read() as session:
        row = session.scalars(query).first()
    if row is None:
        raise not_found(f"safety {kind}", notice_id)
    return {**row.body, "id": row.id, "object": f"safety.{kind}", "created_at": int(row.created_at)}
