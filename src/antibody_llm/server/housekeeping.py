"""What is done beside the requests: leases, lives and leftovers."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import aliased

from .blobs import Blobs
from .context import Context
from .database.tables import Creation, File, Job, Model, Part, Upload
from .files import check_form
from .jobs import REPEAT_SECONDS
from .lifecycle import ACTIVE, ENDED
from .requests import where
from .webhooks import deliver

log = logging.getLogger("antibody.server")

DAY_SECONDS = 86400
AT_ONCE = 100
"""Rows of one kind in a round."""


def housekeep(context: Context) -> None:
    """One round. Every step may be done by several servers at once, and may be cut short."""
    for step in (_leases, _unchecked, _uploads, _files, _models, _creations, _orphans):
        _try(context, step)


def deliveries(context: Context) -> None:
    """Send the webhooks that are due."""
    _try(context, deliver)


def _try(context: Context, step: Callable[[Context], object]) -> None:
    try:
        step(context)
    except Exception as error:
        entry = {"event": "housekeeping_failed", "step": step.__name__.strip("_"), "where": where(error)}
        log.error(json.dumps(entry))


def _leases(context: Context) -> None:
    context.queue.expire()


def _unchecked(context: Context) -> None:
    """Check files whose server was killed between storing and checking."""
    with context.database.read() as session:
        old = context.database.now(session) - 600  # longer than any check takes
        query = select(File).where(File.status == "uploaded", File.created_at < old, File.deleted_at.is_(None))
        rows = session.scalars(query.limit(AT_ONCE)).all()
    for row in rows:
        check_form(context, row)


def _uploads(context: Context) -> None:
    """End uploads that nobody completed, and remove the parts of those that ended."""
    with context.database.write() as session:
        now = context.database.now(session)
        late = select(Upload).where(Upload.status == "pending", Upload.expires_at <= now)
        for upload in session.scalars(late.limit(AT_ONCE)):
            upload.status = "expired"
    with context.database.read() as session:
        ended = select(Part).join(Upload, Upload.id == Part.upload_id)
        ended = ended.where(Upload.status != "pending", Part.blob.is_not(None)).limit(AT_ONCE)
        parts = session.scalars(ended).all()
    for part in parts:
        context.blobs.delete(str(part.blob))
    with context.database.write() as session:
        for part in parts:
            session.merge(part).blob = None


def _files(context: Context) -> None:
    """Remove the content of deleted and expired files, unless a job still needs it."""
    with context.database.write() as session:
        now = context.database.now(session)
        for row in session.scalars(
            select(File).where(File.expires_at <= now, File.deleted_at.is_(None)).limit(AT_ONCE)
        ):
            row.deleted_at = now
    with context.database.read() as session:
        needed = select(Job.seq).where(
            (Job.training_file == File.id) | (Job.validation_file == File.id), Job.status.in_(ACTIVE)
        )
        gone = select(File).where(File.deleted_at.is_not(None), ~File.purged, ~needed.exists()).limit(AT_ONCE)
        rows = session.scalars(gone).all()
    _purge(context, context.blobs, [(row, row.blob) for row in rows])


def _models(context: Context) -> None:
    """Remove the weights of deleted models, unless a job makes or continues them, or a model lies on them."""
    made = aliased(Model)
    with context.database.read() as session:
        needed = select(Job.seq).where((Job.parent == Model.name) | (Job.id == Model.job_id), Job.status.in_(ACTIVE))
        below = select(made.parent).where(made.parent.is_not(None), ~made.purged)  # looked up once, not for each row
        gone = select(Model).where(Model.deleted_at.is_not(None), ~Model.purged, Model.name.not_in(below))
        rows = session.scalars(gone.where(~needed.exists()).limit(AT_ONCE)).all()
    _purge(context, context.blobs, [(row, row.adapter) for row in rows])


def _purge(context: Context, blobs: Blobs, rows: list[tuple[File | Model, str]]) -> None:
    for _, key in rows:
        blobs.delete(key)
    if rows:
        with context.database.write() as session:
            for row, _ in rows:
                session.merge(row).purged = True


def _orphans(context: Context) -> None:
    """Once a day, remove blobs that no row names: their writer was killed before it could record them."""
    now = time.time()  # the blobs' own clock
    if now - context.swept_at < DAY_SECONDS:
        return
    context.swept_at = now
    with context.database.read() as session:
        columns = (File.blob, Part.blob, Model.adapter)
        named = {key for column in columns for key in session.scalars(select(column)) if key is not None}
        for private, status in session.execute(select(Job.private, Job.status)):
            named |= kept_blobs(private, ended=status in ENDED)
    for kind in ("files", "parts", "models", "runs", "results", "screenings"):
        for key in context.blobs.older(kind, now - DAY_SECONDS):
            if key not in named:
                context.blobs.delete(key)


def kept_blobs(private: Mapping[str, Any], *, ended: bool) -> set[str]:
    """Blobs of a job that its worker has noted: what screening found, and what going on with it needs."""
    trained = private.get("trained") or {}
    needed = () if ended else (private.get("run"), trained.get("adapter"), trained.get("metrics"))
    return {key for key in (private.get("rows"), *needed) if isinstance(key, str)}


def _creations(context: Context) -> None:
    with context.database.write() as session:
        old = context.database.now(session) - REPEAT_SECONDS
        session.execute(delete(Creation).where(Creation.created_at < old))
