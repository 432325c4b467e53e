"""Objects of answers, from rows. Their schemas are what the published OpenAPI says."""

from typing import Any, Literal

from pydantic import BaseModel

from .database.tables import Checkpoint, Event, File, Job, Model, Permission, Upload, Webhook
from .lifecycle import Status


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorObject(BaseModel):
    """The body of every error."""

    error: ErrorDetail


class FileObject(BaseModel):
    """A file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: str
    status_details: str | None = None
    validation: dict[str, Any] | None = None
    """Ours: ``method``, ``num_rows``, ``num_faults`` and the first hundred ``faults``."""


class UploadObject(BaseModel):
    """An upload in parts."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: str
    file: FileObject | None = None


class PartObject(BaseModel):
    """A part."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None = None


class JobObject(BaseModel):
    """A job."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    result_files: list[str]
    status: str
    trained_tokens: int | None
    training_file: str
    validation_file: str | None
    hyperparameters: dict[str, Any] | None
    seed: int
    error: JobError | None
    estimated_finish: int | None
    integrations: list[dict[str, Any]] | None
    metadata: dict[str, str] | None
    method: dict[str, Any]
    user_provided_suffix: str | None
    safety: dict[str, Any]
    """Ours: the defence, what screening and gate found, and whether the model is ``held`` for the operator."""


class EventObject(BaseModel):
    """An event of a job."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, Any] | None


class CheckpointObject(BaseModel):
    """A checkpoint."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, Any]
    step_number: int


class ModelObject(BaseModel):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class PermissionObject(BaseModel):
    """A permission."""

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: int
    project_id: str


class WebhookObject(BaseModel):
    """An endpoint."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str


class WebhookWithSecret(WebhookObject):
    """An endpoint, with the secret that is shown once."""

    signing_secret: str


class Deleted(BaseModel):
    """Something is gone."""

    id: str
    object: str
    deleted: bool = True


class Listed(BaseModel):
    """A page of a list."""

    object: Literal["list"] = "list"
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class FileList(Listed):
    """Files."""

    data: list[FileObject]


class JobList(Listed):
    """Jobs."""

    data: list[JobObject]


class EventList(Listed):
    """Events."""

    data: list[EventObject]


class CheckpointList(Listed):
    """Checkpoints."""

    data: list[CheckpointObject]


class ModelList(Listed):
    """Models."""

    data: list[ModelObject]


class PermissionList(Listed):
    """Permissions."""

    data: list[PermissionObject]


class WebhookList(Listed):
    """Endpoints."""

    data: list[WebhookObject]


def file_object(row: File, *, with_faults: bool = True) -> dict[str, Any]:
    """A file for its owner.

    Args:
        row: The file.
        with_faults: Whether each fault is shown; a list of ten thousand files only counts them.
    """
    validation, details = row.validation, row.status_details
    if not with_faults and validation is not None and details is not None:
        validation, details = validation | {"faults": []}, details.split("\n")[0]
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.bytes,
        "created_at": int(row.created_at),
        "expires_at": _whole(row.expires_at),
        "filename": row.filename,
        "purpose": row.purpose,
        "status": row.status,
        "status_details": details,
        "validation": validation,
    }


def upload_object(row: Upload, file: File | None = None) -> dict[str, Any]:
    """An upload, with the file that it became."""
    return {
        "id": row.id,
        "object": "upload",
        "bytes": row.bytes,
        "created_at": int(row.created_at),
        "expires_at": int(row.expires_at),
        "filename": row.filename,
        "purpose": row.purpose,
        "status": row.status,
        "file": None if file is None else file_object(file),
    }


def job_object(row: Job) -> dict[str, Any]:
    """A job for its owner."""
    return {
        "id": row.id,
        "object": "fine_tuning.job",
        "created_at": int(row.created_at),
        "finished_at": _whole(row.finished_at),
        "model": row.model,
        "fine_tuned_model": row.fine_tuned_model,
        "organization_id": row.organization_id,
        "result_files": row.result_files,
        "status": Status.RUNNING if row.status == Status.HELD else row.status,
        "trained_tokens": row.trained_tokens,
        "training_file": row.training_file,
        "validation_file": row.validation_file,
        "hyperparameters": row.hyperparameters if row.method == "supervised" else None,
        "seed": row.seed,
        "error": row.error,
        "estimated_finish": _whole(row.estimated_finish),
        "integrations": row.integrations,
        "metadata": row.labels,
        "method": {"type": row.method, row.method: {"hyperparameters": row.hyperparameters}},
        "user_provided_suffix": row.suffix,
        "safety": {"defence": row.defence, "gate": {"thresholds": row.gate}} | row.safety,
    }


def event_object(row: Event) -> dict[str, Any]:
    """An event."""
    return {
        "id": row.id,
        "object": "fine_tuning.job.event",
        "created_at": int(row.created_at),
        "level": row.level,
        "message": row.message,
        "type": row.type,
        "data": row.data,
    }


def checkpoint_object(row: Checkpoint) -> dict[str, Any]:
    """A checkpoint."""
    return {
        "id": row.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(row.created_at),
        "fine_tuned_model_checkpoint": row.model,
        "fine_tuning_job_id": row.job_id,
        "metrics": row.metrics,
        "step_number": row.step,
    }


def model_object(row: Model, owned_by: str) -> dict[str, Any]:
    """A fine-tuned model."""
    return {"id": row.name, "object": "model", "created": int(row.created_at), "owned_by": owned_by}


def permission_object(row: Permission) -> dict[str, Any]:
    """A permission."""
    return {
        "id": row.id,
        "object": "checkpoint.permission",
        "created_at": int(row.created_at),
        "project_id": row.project_id,
    }


def webhook_object(row: Webhook) -> dict[str, Any]:
    """An endpoint, without its secret."""
    return {
        "id": row.id,
        "object": "webhook_endpoint",
        "created_at": int(row.created_at),
        "updated_at": int(row.updated_at),
        "name": row.name,
        "url": row.url,
        "event_types": row.event_types,
        "signing_secret_hint": f"whsec_...{row.secret[-4:]}",
    }


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
