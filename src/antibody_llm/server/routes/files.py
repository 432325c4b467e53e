"""``/files``."""

from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import ValidationError

from ..auth import Caller
from ..bodies import PURPOSES, ExpiresAfter
from ..context import Context, context_of
from ..database.tables import File
from ..errors import ApiError
from ..files import add_file, living, own_file
from ..multipart import Form, receive_form
from ..objects import Deleted, FileList, FileObject, file_object
from ..paging import listed, page

router = APIRouter(tags=["files"])

FORM_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(PURPOSES)},
                        "expires_after[anchor]": {"type": "string", "const": "created_at"},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
                    },
                }
            }
        },
    }
}


@router.post("/files", response_model=FileObject, openapi_extra=FORM_SCHEMA)
async def create(request: Request, caller: Caller) -> dict[str, object]:
    """Store a file. One to train on is checked: ``status`` is then ``processed``, or ``error`` with its faults."""
    context = context_of(request)
    context.rates.count(caller.key_id, "uploads", context.settings.limits.uploads_per_minute)
    form = await receive_form(
        request, context.blobs, file_field="file", kind="files", max_bytes=context.settings.limits.file_bytes
    )
    try:
        purpose, seconds = _asked(form)
        row = await run_sync(lambda: _added(context, caller, form, purpose, seconds))
    except ApiError:
        await run_sync(context.blobs.delete, form.blob)
        raise
    return file_object(row)


def _added(context: Context, caller: Caller, form: Form, purpose: str, seconds: int | None) -> File:
    return add_file(
        context,
        caller,
        purpose=purpose,
        filename=form.filename or "upload",
        num_bytes=form.num_bytes,
        blob=form.blob,
        expires_after=seconds,
    )


def _asked(form: Form) -> tuple[str, int | None]:
    """The purpose and life that the form asks for."""
    fields = dict(form.fields)
    purpose = fields.pop("purpose", None)
    anchor, seconds = fields.pop("expires_after[anchor]", None), fields.pop("expires_after[seconds]", None)
    if fields:
        raise ApiError(
            400,
            f"Unknown parameter: '{next(iter(fields))[:100]}'. Known: file, purpose, expires_after.",
            code="unknown_parameter",
            param=next(iter(fields))[:100],
        )
    check_purpose(purpose)
    assert purpose is not None
    if anchor is None and seconds is None:
        return purpose, None
    try:
        return purpose, ExpiresAfter.model_validate({"anchor": anchor, "seconds": seconds}).seconds
    except ValidationError:
        raise ApiError(
            400,
            "expires_after needs anchor 'created_at' and seconds from 3600 to 2592000.",
            code="invalid_value",
            param="expires_after",
        ) from None


def check_purpose(purpose: str | None) -> None:
    """Refuse a purpose that is missing or unknown."""
    if purpose not in PURPOSES:
        what = "Missing required parameter: 'purpose'." if purpose is None else f"Unknown purpose '{purpose[:100]}'."
        raise ApiError(400, f"{what} Purposes: {', '.join(PURPOSES)}.", code="invalid_purpose", param="purpose")


@router.get("/files", response_model=FileList)
def index(
    request: Request,
    caller: Caller,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> dict[str, object]:
    """The project's files."""
    context = context_of(request)
    with context.database.read() as session:
        query = living(caller.project_id, context.database.now(session))
        if purpose is not None:
            query = query.where(File.purpose == purpose)
        rows, more = page(session, query, File, after=after, limit=limit, newest_first=order == "desc")
        return listed([file_object(row, with_faults=False) for row in rows], has_more=more)


@router.get("/files/{file_id}", response_model=FileObject)
def retrieve(request: Request, caller: Caller, file_id: str) -> dict[str, object]:
    """One file."""
    context = context_of(request)
    with context.database.read() as session:
        return file_object(own_file(session, caller, file_id, now=context.database.now(session)))


BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}


@router.get("/files/{file_id}/content", response_class=Response, responses=BYTES)
def content(request: Request, caller: Caller, file_id: str) -> StreamingResponse:
    """The file's bytes."""
    context = context_of(request)
    with context.database.read() as session:
        row = own_file(session, caller, file_id, now=context.database.now(session))
    headers = {
        "content-length": str(row.bytes),
        "content-disposition": f'attachment; filename="{row.id}"',  # never the name that a stranger chose
        "x-content-type-options": "nosniff",
    }
    return StreamingResponse(context.blobs.chunks(row.blob), media_type="application/octet-stream", headers=headers)


@router.delete("/files/{file_id}", response_model=Deleted)
def delete(request: Request, caller: Caller, file_id: str) -> dict[str, object]:
    """Delete a file. A job that still needs it keeps its content until it ends."""
    context = context_of(request)
    with context.database.write() as session:
        now = context.database.now(session)
        row = own_file(session, caller, file_id, now=now)
        row.deleted_at = now
        return {"id": row.id, "object": "file", "deleted": True}
