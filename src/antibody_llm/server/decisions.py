"""An operator's word on a model: release what the gate refused or held, withdraw or reject what it let through.

    held         approve -> the job succeeded        reject -> the job failed, ``held_model_rejected``
    refused      approve -> the job stays failed, and its ``fine_tuned_model`` can be asked
    released     reject  -> the job stays succeeded, and nobody can ask or continue the model

Each checkpoint is decided by its own name. The reason is kept in the audit log, and the customer reads it too.
"""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from .auth import Principal
from .clean import clean
from .database.tables import Audit, Job, Model
from .errors import ApiError, not_found
from .lifecycle import Status, record_event
from .records import fail, succeed

REJECTED = "held_model_rejected"
"""``error.code`` of a job whose held model an operator rejected."""


def decide_by_hand(
    session: Session, operator: Principal, name: str, *, released: bool, reason: str, now: float
) -> Model:
    """Release a model or take it out of reach, whatever the gate said, with a written reason.

    Args:
        session: A session that writes.
        operator: Who decides.
        name: The model's name.
        released: True: approve it. False: reject it.
        reason: Why, in the operator's words.
        now: Seconds since 1970.

    Raises:
        ApiError: 404: there is no such model, or its customer has deleted it or cancelled its job. 400: it is to be
            released, and the gate has not measured it.
    """
    job, row = _locked(session, name)
    if released and not {name for name in row.gate or {} if name != "override"}:
        raise ApiError(
            400,
            "The gate has not measured this model, and nobody can release what has no verdict. Its verdict comes when "
            "its job has been trained; a checkpoint that is not among the newest (worker.checkpoints) gets none.",
            code="not_measured",
        )
    action = "model.approved" if released else "model.rejected"
    override = clean({"action": action, "at": int(now), "reason": reason})
    row.released, row.gate = released, {**(row.gate or {}), "override": override}
    session.add(
        Audit(
            created_at=now,
            actor=operator.key_id,
            action=action,
            subject=row.name,
            project_id=row.project_id,
            data={"reason": override["reason"]},
        )
    )
    if row.step is None:
        _decide_result(session, job, row, override, now)
    else:
        _decide_checkpoint(session, job, row, override, now)
    return row


def _locked(session: Session, name: str) -> tuple[Job, Model]:
    """The model and its job, which nobody else changes until the session's end: the job first, as ``cancel`` does."""
    living = select(Model).where(Model.name == name, Model.deleted_at.is_(None))
    row = session.scalars(living).first()
    if row is not None:
        job = session.scalars(select(Job).where(Job.id == row.job_id).with_for_update()).one()
        row = session.scalars(living.with_for_update().execution_options(populate_existing=True)).first()
        if row is not None:
            return job, row
    raise not_found("model", name)


def _decide_result(session: Session, job: Job, row: Model, override: dict[str, Any], now: float) -> None:
    was_held = job.status == Status.HELD
    job.safety = {name: value for name, value in job.safety.items() if name != "held"} | {"override": override}
    job.fine_tuned_model = row.name if row.released else None
    said = "approved" if row.released else "rejected"
    record_event(session, job, f"An operator has {said} the model: {override['reason']}", now=now)
    if was_held and row.released:
        succeed(session, job, row.name, now=now)
    elif was_held:
        message = f"The model passed the gate, and an operator rejected it: {override['reason']}"
        fail(session, job, row.name, {"code": REJECTED, "message": message, "param": None}, now=now)


def _decide_checkpoint(session: Session, job: Job, row: Model, override: dict[str, Any], now: float) -> None:
    told = [
        {**entry, "held": False, "override": override} if entry["model"] == row.name else entry
        for entry in job.safety.get("checkpoints", ())
    ]
    if told:
        job.safety = {**job.safety, "checkpoints": told}
    said = "approved" if row.released else "rejected"
    message = f"An operator has {said} the checkpoint at step {row.step}: {override['reason']}"
    record_event(session, job, message, now=now)
