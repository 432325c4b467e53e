"""A job in the hands of a worker."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from .database.tables import Checkpoint, Job, Organization
from .ids import model_name


class LeaseLost(Exception):
    """The job is no longer this worker's: its customer cancelled it, or another worker has claimed it."""


@dataclass(frozen=True)
class ClaimedJob:
    """A job as its worker sees it. Nothing here changes while it is held."""

    id: str
    status: str
    """``validating_files``: screen the upload. ``running``: train."""
    project_id: str
    organization: str
    """Name of the organisation."""
    model: str
    """The model that the job asks for."""
    base: str
    """The offered base model at the beginning of the chain."""
    parent: str | None
    """The ``ft:`` model that the job continues; its weights are ``models.adapter`` of that name."""
    training_file: str
    validation_file: str | None
    method: str
    """``supervised`` or ``dpo``."""
    hyperparameters: Mapping[str, Any]
    """What the job asks for; the worker resolves ``auto`` and reports it with ``resolved``."""
    seed: int
    suffix: str | None
    defence: Mapping[str, Any]
    """``{"name": ..., "options": {...}}``."""
    gate: Mapping[str, Any]
    """The thresholds that the job was created under."""
    safety: Mapping[str, Any]
    private: Mapping[str, Any]
    attempts: int
    """Number of claims since its last new checkpoint, this one included."""
    last_step: int | None
    """Step of its newest checkpoint."""

    def model_name(self, step: int | None = None) -> str:
        """What the job's result is called, or its checkpoint at ``step``."""
        return model_name(base=self.base, organization=self.organization, suffix=self.suffix, job_id=self.id, step=step)


@dataclass(frozen=True)
class Claimed:
    """A job and the token under which its worker may write."""

    job: ClaimedJob
    token: int
    worker_id: str


@dataclass(frozen=True)
class Orders:
    """What the customer wants of a job that runs."""

    pause: bool
    """Stop after the next checkpoint and call ``release``."""
    lease_until: float
    """End of the lease, by the database's clock."""


def seen(session: Session, job: Job) -> ClaimedJob:
    """A job as its worker sees it."""
    names = set(ClaimedJob.__dataclass_fields__) - {"organization", "last_step"}
    organization = session.get(Organization, job.organization_id)
    last_step = session.scalar(select(func.max(Checkpoint.step)).where(Checkpoint.job_id == job.id))
    return ClaimedJob(
        **{name: getattr(job, name) for name in names},
        organization=organization.name if organization else "",
        last_step=last_step,
    )
