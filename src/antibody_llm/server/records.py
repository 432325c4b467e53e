"""Rows that the end of a job leaves: its model, result files, the decision of the gate, an alert where it refused."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from .claims import Claimed
from .clean import clean
from .database.tables import Audit, File, Job, Model, Notice
from .ids import new_id
from .lifecycle import announce


def model_row(
    job: Job,
    name: str,
    adapter: str,
    now: float,
    *,
    step: int | None = None,
    gate: Mapping[str, Any] | None = None,
    released: bool = False,
) -> Model:
    """A model that a job has made."""
    return Model(
        name=name,
        project_id=job.project_id,
        job_id=job.id,
        created_at=now,
        base=job.base,
        parent=job.parent,
        adapter=adapter,
        step=step,
        gate=None if gate is None else clean(dict(gate)),
        released=released,
    )


def result_file(session: Session, job: Job, name: str, content: bytes, blob: str, now: float) -> str:
    """Record a stored blob as a result file; returns the file's id."""
    row = File(
        id=new_id("file-"),
        project_id=job.project_id,
        created_at=now,
        purpose="fine-tune-results",
        filename=name,
        bytes=len(content),
        status="processed",
        blob=blob,
    )
    session.add(row)
    return row.id


def audit_gate(
    session: Session,
    claimed: Claimed,
    model: str,
    job: Job,
    released: bool,
    gate: Mapping[str, Any] | None,
    now: float,
) -> None:
    """Record the gate's decision."""
    session.add(
        Audit(
            created_at=now,
            actor=claimed.worker_id,
            action="gate.released" if released else "gate.refused",
            subject=model,
            project_id=job.project_id,
            data=clean(dict(gate or {})),
        )
    )


def alert(session: Session, job: Job, model: str, error: Mapping[str, Any], now: float) -> str:
    """Record a safety alert that a model was refused, for the customer; returns its id."""
    row = Notice(
        id=new_id("alert_"),
        project_id=job.project_id,
        kind="alert",
        created_at=now,
        body={
            "error_type": clean(str(error.get("code") or "safety_gate_failed")),
            "model": model,
            "reason": clean(str(error.get("message") or "")),
            "request_id": job.id,
            "request_paused": False,
            "response_id": None,
        },
    )
    session.add(row)
    announce(session, job.project_id, "safety.alert.created", {"id": row.id}, now=now)
    return row.id
