"""Files of a project: stored, checked, found, and gone."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from .auth import Principal
from .context import Context
from .database.tables import File, Project, Upload
from .errors import ApiError, not_found
from .ids import new_id
from .validation import validate_blob

DEFAULT_LIFE = {"batch": 30 * 86400}
"""Seconds that a file of a purpose lives where its upload does not say."""


def add_file(
    context: Context,
    principal: Principal,
    *,
    purpose: str,
    filename: str,
    num_bytes: int,
    blob: str,
    expires_after: int | None,
    within: Callable[[Session, str], None] | None = None,
) -> File:
    """Record a stored blob as a file, and check its form. From the record on, the file survives any kill.

    Args:
        context: The server.
        principal: Whose it will be.
        purpose: One of the API's purposes.
        filename: The customer's name for it.
        num_bytes: Its length.
        blob: Its key.
        expires_after: Its life in seconds; None: as its purpose has it.
        within: Called in the transaction that records the file, with the file's id.
    """
    file_id = new_id("file-")
    with context.database.write() as session:
        if within is not None:
            within(session, file_id)
        check_storage(session, context, principal, num_bytes)
        now = context.database.now(session)
        life = expires_after or DEFAULT_LIFE.get(purpose)
        row = File(
            id=file_id,
            project_id=principal.project_id,
            created_at=now,
            expires_at=None if life is None else now + life,
            purpose=purpose,
            filename=filename,
            bytes=num_bytes,
            status="uploaded",
            blob=blob,
        )
        session.add(row)
    context.metrics.received.inc(num_bytes)
    return check_form(context, row)


def check_form(context: Context, row: File) -> File:
    """Check the form of a file that was only stored so far, and record what was found."""
    found = None
    if row.purpose == "fine-tune":
        limits = context.settings.limits
        with context.blobs.open(row.blob) as file:
            found = validate_blob(
                file,
                num_bytes=row.bytes,
                line_bytes=limits.line_bytes,
                memory_bytes=limits.validation_memory_bytes,
            )
    with context.database.write() as session:
        row = session.merge(row, load=True)
        row.validation = None if found is None else found.to_json()
        row.status = "processed" if found is None or not found.num_faults else "error"
        row.status_details = None if found is None else found.details()
    return row


def own_file(session: Session, principal: Principal, file_id: str, *, now: float, param: str | None = None) -> File:
    """A file of the caller's project.

    Raises:
        ApiError: 404: there is none, it is another's, deleted or expired.
    """
    row: File | None = session.scalars(living(principal.project_id, now).where(File.id == file_id)).first()
    if row is None:
        raise not_found("file", file_id, param=param)
    return row


def living(project_id: str, now: float) -> Any:
    """The files of a project that are neither deleted nor expired."""
    fresh = (File.expires_at.is_(None)) | (File.expires_at > now)
    return select(File).where(File.project_id == project_id, File.deleted_at.is_(None), fresh)


def check_storage(session: Session, context: Context, principal: Principal, num_bytes: int) -> None:
    """Refuse bytes that the project or its organisation has no room for.

    Raises:
        ApiError: 400.
    """
    limits = context.settings.limits
    own = Project.id == principal.project_id
    _check_room(session, "project", own, num_bytes, limits.project_bytes)
    if limits.organization_bytes:
        whole = Project.organization_id == principal.organization_id
        _check_room(session, "organisation", whole, num_bytes, limits.organization_bytes)


def _check_room(session: Session, whose: str, projects: Any, num_bytes: int, most: int) -> None:
    among = select(Project.id).where(projects)
    files = select(func.coalesce(func.sum(File.bytes), 0)).where(File.project_id.in_(among), File.deleted_at.is_(None))
    uploads = select(func.coalesce(func.sum(Upload.bytes), 0)).where(
        Upload.project_id.in_(among), Upload.status == "pending"
    )
    used = int(session.scalar(files) or 0) + int(session.scalar(uploads) or 0)
    if used + num_bytes > most:
        raise ApiError(
            400,
            f"The {whose} stores {used} of {most} bytes, and these are {num_bytes} more. Delete files first.",
            code="exceeded_quota",
        )
