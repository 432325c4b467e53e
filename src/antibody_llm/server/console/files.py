"""Pages of files: the list, and one file with its faults by line."""

from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from ..context import context_of
from ..database.tables import File
from ..errors import not_found
from ..files import living
from ..paging import page as page_of
from .render import Page, page
from .views import projects
from .visits import Someone, Visitor

router = APIRouter(prefix="/console/files", route_class=Page)

FILES_PER_PAGE = 25
STATES = {"processed": ("Valid", "good"), "error": ("Faulty", "bad"), "uploaded": ("Being checked", "now")}
STORED = ("Stored", "soft")
"""What a file is whose form nobody checks."""


def state(file: File) -> tuple[str, str]:
    """What is known of a file's form, and its colour."""
    return STORED if file.status == "processed" and file.validation is None else STATES[file.status]


@router.get("")
def index(request: Request, someone: Someone, after: str | None = None, project: str | None = None) -> Response:
    """The files that one may see, newest first."""
    context = context_of(request)
    with context.database.read() as session:
        query = _files_of(someone, context.database.now(session), project)
        rows, more = page_of(session, query, File, after=after, limit=FILES_PER_PAGE)
        return page(
            "files",
            someone,
            files=[(file, state(file)) for file in rows],
            more=rows[-1].id if more else None,
            first=after is None,
            projects=projects(session) if someone.is_operator else {},
            project=project,
        )


@router.get("/{file_id}")
def retrieve(request: Request, someone: Someone, file_id: str) -> Response:
    """One file, with its faults."""
    context = context_of(request)
    with context.database.read() as session:
        row = _find(session, someone, file_id, context.database.now(session))
        project = projects(session).get(row.project_id, row.project_id) if someone.is_operator else ""
        return page("file", someone, file=row, state=state(row), project=project)


def _files_of(someone: Visitor, now: float, project: str | None = None) -> Any:
    """The files that somebody may see: an operator every project's, or one's; a customer their own project's."""
    if not someone.is_operator:
        return living(someone.principal.project_id, now)
    if project:
        return living(project, now)
    fresh = (File.expires_at.is_(None)) | (File.expires_at > now)
    return select(File).where(File.deleted_at.is_(None), fresh)


def _find(session: Session, someone: Visitor, file_id: str, now: float) -> File:
    row: File | None = session.scalars(_files_of(someone, now).where(File.id == file_id)).first()
    if row is None:
        raise not_found("file", file_id)
    return row
