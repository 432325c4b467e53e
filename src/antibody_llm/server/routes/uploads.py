"""``/uploads``: a file in parts."""

import hashlib

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ..auth import Caller, Principal
from ..bodies import UploadComplete, UploadCreate
from ..context import Context, context_of
from ..database.tables import File, Part, Upload
from ..errors import ApiError, not_found
from ..files import add_file, check_storage
from ..ids import new_id
from ..multipart import Form, receive_form
from ..objects import PartObject, UploadObject, upload_object

router = APIRouter(prefix="/uploads", tags=["uploads"])

LIFE_SECONDS = 3600

PART_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["data"],
                    "properties": {"data": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


@router.post("", response_model=UploadObject)
def create(request: Request, caller: Caller, body: UploadCreate) -> dict[str, object]:
    """Begin a file that arrives in parts within an hour."""
    context = context_of(request)
    limits = context.settings.limits
    context.rates.count(caller.key_id, "uploads", limits.uploads_per_minute)
    most = limits.file_bytes if body.purpose == "fine-tune" else limits.upload_bytes
    if body.bytes > most:
        message = f"bytes is {body.bytes}, and a file for '{body.purpose}' has at most {most}. Split it."
        raise ApiError(400, message, code="file_too_large", param="bytes")
    with context.database.write() as session:
        check_storage(session, context, caller, body.bytes)
        now = context.database.now(session)
        row = Upload(
            id=new_id("upload_"),
            project_id=caller.project_id,
            created_at=now,
            expires_at=now + LIFE_SECONDS,
            bytes=body.bytes,
            filename=body.filename,
            mime_type=body.mime_type,
            purpose=body.purpose,
            expires_after=None if body.expires_after is None else body.expires_after.seconds,
            status="pending",
        )
        session.add(row)
        return upload_object(row)


@router.post("/{upload_id}/parts", response_model=PartObject, openapi_extra=PART_SCHEMA)
async def add_part(request: Request, caller: Caller, upload_id: str) -> dict[str, object]:
    """Store a part. Parts may arrive in any order, and at once."""
    context = context_of(request)
    context.rates.count(caller.key_id, "uploads", context.settings.limits.uploads_per_minute)
    await run_sync(_check_open, context, caller, upload_id)
    most = context.settings.limits.part_bytes
    form = await receive_form(request, context.blobs, file_field="data", kind="parts", max_bytes=most, what="part")
    try:
        return await run_sync(lambda: _add_part(context, caller, upload_id, form))
    except ApiError:
        await run_sync(context.blobs.delete, form.blob)
        raise


def _check_open(context: Context, caller: Principal, upload_id: str) -> None:
    with context.database.read() as session:
        _open_upload(session, context, caller, upload_id)


def _add_part(context: Context, caller: Principal, upload_id: str, form: Form) -> dict[str, object]:
    with context.database.write() as session:
        row = _open_upload(session, context, caller, upload_id, lock=True)
        stored = session.scalar(select(func.coalesce(func.sum(Part.bytes), 0)).where(Part.upload_id == row.id)) or 0
        # Twice the announced length: a part may be sent again, but not without end.
        if stored + form.num_bytes > 2 * row.bytes + context.settings.limits.part_bytes:
            message = f"The parts of {row.id} are {stored + form.num_bytes} bytes, and {row.bytes} were announced."
            raise ApiError(400, message, code="too_many_bytes", param="data")
        part = Part(
            id=new_id("part_"),
            upload_id=row.id,
            created_at=context.database.now(session),
            bytes=form.num_bytes,
            blob=form.blob,
        )
        session.add(part)
        return {"id": part.id, "object": "upload.part", "created_at": int(part.created_at), "upload_id": row.id}


@router.post("/{upload_id}/complete", response_model=UploadObject)
def complete(request: Request, caller: Caller, upload_id: str, body: UploadComplete) -> dict[str, object]:
    """Make a file of the parts, in the order in which they are named. A second time answers as the first."""
    context = context_of(request)
    if (done := _completed(context, caller, upload_id)) is not None:
        return done
    row, parts = _ordered(context, caller, upload_id, body.part_ids)
    blob, digest = _joined(context, parts)

    def claim(session: Session, file_id: str) -> None:
        """Complete the upload, which only one request can do."""
        upload = _open_upload(session, context, caller, upload_id, lock=True)
        upload.status, upload.file_id = "completed", file_id

    try:
        if body.md5 is not None and digest != body.md5.lower():
            message = (
                f"The parts have the MD5 {digest}, not {body.md5}. Check their order and send the wrong one again."
            )
            raise ApiError(400, message, code="md5_mismatch", param="md5")
        add_file(
            context,
            caller,
            purpose=row.purpose,
            filename=row.filename,
            num_bytes=row.bytes,
            blob=blob,
            expires_after=row.expires_after,
            within=claim,
        )
    except ApiError:
        context.blobs.delete(blob)
        if (done := _completed(context, caller, upload_id)) is not None:  # by the same request, sent again
            return done
        raise
    done = _completed(context, caller, upload_id)
    assert done is not None
    return done


def _completed(context: Context, caller: Principal, upload_id: str) -> dict[str, object] | None:
    """An upload that has become a file."""
    with context.database.read() as session:
        row = _own_upload(session, caller, upload_id)
        if row.status != "completed":
            return None
        return upload_object(row, session.scalars(select(File).where(File.id == row.file_id)).first())


def _ordered(context: Context, caller: Principal, upload_id: str, part_ids: list[str]) -> tuple[Upload, list[Part]]:
    """The upload and its parts as they were named, which together have the announced length."""
    with context.database.read() as session:
        row = _open_upload(session, context, caller, upload_id)
        parts = {part.id: part for part in session.scalars(select(Part).where(Part.upload_id == row.id))}
    if (strange := next((each for each in part_ids if each not in parts), None)) is not None:
        message = f"part_ids: {strange!r} is no part of {upload_id}."
        raise ApiError(400, message, code="part_not_found", param="part_ids")
    if len(set(part_ids)) != len(part_ids):
        raise ApiError(400, "part_ids names a part twice.", code="invalid_value", param="part_ids")
    ordered = [parts[each] for each in part_ids]
    total = sum(part.bytes for part in ordered)
    if total != row.bytes:
        message = f"The parts are {total} bytes, and {row.bytes} were announced. Name every part once, in order."
        raise ApiError(400, message, code="bytes_mismatch", param="part_ids")
    return row, ordered


@router.post("/{upload_id}/cancel", response_model=UploadObject)
def cancel(request: Request, caller: Caller, upload_id: str) -> dict[str, object]:
    """Give up an upload. A second time changes nothing."""
    context = context_of(request)
    with context.database.write() as session:
        row = _own_upload(session, caller, upload_id)
        if row.status != "cancelled":
            row = _open_upload(session, context, caller, upload_id, lock=True)
            row.status = "cancelled"
        return upload_object(row)


def _joined(context: Context, parts: list[Part]) -> tuple[str, str]:
    """One blob of all parts, and its MD5."""
    blob, digest = context.blobs.new_key("files"), hashlib.md5(usedforsecurity=False)
    with context.blobs.writing(blob) as file:
        for part in parts:
            for piece in context.blobs.chunks(str(part.blob)):
                digest.update(piece)
                file.write(piece)
    return blob, digest.hexdigest()


def _own_upload(session: Session, caller: Principal, upload_id: str, *, lock: bool = False) -> Upload:
    query = select(Upload).where(Upload.id == upload_id, Upload.project_id == caller.project_id)
    row = session.scalars(query.with_for_update() if lock else query).first()
    if row is None:
        raise not_found("upload", upload_id)
    return row


def _open_upload(
    session: Session, context: Context, caller: Principal, upload_id: str, *, lock: bool = False
) -> Upload:
    """An upload to which parts may be added.

    Raises:
        ApiError: 404: there is none; 400: it has ended.
    """
    row = _own_upload(session, caller, upload_id, lock=lock)
    late = row.status == "pending" and row.expires_at <= context.database.now(session)
    if row.status != "pending" or late:
        message = f"{row.id} is {'expired' if late else row.status}: nothing can be added. Begin a new upload."
        raise ApiError(400, message, code="upload_not_pending")
    return row
