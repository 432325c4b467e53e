"""Every row that the server keeps. Public ids are random text; ``seq`` is the order in which rows came to be.

Times are seconds since 1970. JSON columns hold what ``queue.clean`` lets through: no NaN, no NUL, no half surrogates.
"""

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Json = JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
Seq = BigInteger().with_variant(Integer(), "sqlite")  # SQLite numbers rows by itself only in an INTEGER


class Table(DeclarativeBase):
    """What every table has."""

    type_annotation_map = {dict[str, Any]: Json, list[Any]: Json, str: Text(), int: BigInteger()}


class Organization(Table):
    """A customer."""

    __tablename__ = "organizations"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    """Part of the names of its fine-tuned models."""
    created_at: Mapped[float]


class Project(Table):
    """A part of an organisation. Files, jobs and models belong to one, and others see none of them."""

    __tablename__ = "projects"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), index=True)
    name: Mapped[str]
    created_at: Mapped[float]


class Key(Table):
    """An API key, of which only a digest is kept."""

    __tablename__ = "keys"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    """SHA-256, hex. The key has 256 random bits, so that a slow hash would protect nothing."""
    hint: Mapped[str]
    """Its last characters."""
    name: Mapped[str]
    scope: Mapped[str]
    """``customer`` or ``operator``."""
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    revoked_at: Mapped[float | None]


class File(Table):
    """A stored file of a project."""

    __tablename__ = "files"
    seq: Mapped[int] = mapped_column(Seq, primary_key=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    project_id: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]
    expires_at: Mapped[float | None] = mapped_column(index=True)
    purpose: Mapped[str]
    filename: Mapped[str]
    """The customer's name for it: a label, never a path."""
    bytes: Mapped[int]
    status: Mapped[str] = mapped_column(index=True)
    """``uploaded`` until its form is checked, then ``processed`` or ``error``."""
    status_details: Mapped[str | None]
    validation: Mapped[dict[str, Any] | None]
    """``Validation.to_json`` of a file to train on."""
    blob: Mapped[str]
    """Key of its content among the blobs."""
    deleted_at: Mapped[float | None] = mapped_column(index=True)
    purged: Mapped[bool] = mapped_column(default=False)
    """Whether the content of a deleted file is gone too."""
    __table_args__ = (
        Index("files_by_project", "project_id", "seq"),
        Index("files_by_size", "project_id", "deleted_at", "bytes"),
    )


class Upload(Table):
    """A file that arrives in parts."""

    __tablename__ = "uploads"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64), index=True)
    created_at: Mapped[float]
    expires_at: Mapped[float] = mapped_column(index=True)
    bytes: Mapped[int]
    filename: Mapped[str]
    mime_type: Mapped[str]
    purpose: Mapped[str]
    expires_after: Mapped[int | None]
    """Life of the file that it becomes, in seconds."""
    status: Mapped[str]
    """``pending``, ``completed``, ``cancelled`` or ``expired``."""
    file_id: Mapped[str | None] = mapped_column(String(64))


class Part(Table):
    """A part of an upload."""

    __tablename__ = "parts"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"), index=True)
    created_at: Mapped[float]
    bytes: Mapped[int]
    blob: Mapped[str | None]
    """None once its content is gone."""


class Job(Table):
    """A fine-tuning job, which is also an entry of the queue. Only ``queue.py`` and ``lifecycle.py`` change one."""

    __tablename__ = "jobs"
    seq: Mapped[int] = mapped_column(Seq, primary_key=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    organization_id: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str] = mapped_column(String(64))
    key_id: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]
    status: Mapped[str] = mapped_column(String(32))
    """A value of ``lifecycle.Status``."""
    model: Mapped[str]
    """The model asked for: a base model or an ``ft:`` model."""
    base: Mapped[str]
    """The offered base model at the beginning of the chain of continuations."""
    parent: Mapped[str | None]
    """The ``ft:`` model that it continues."""
    training_file: Mapped[str]
    validation_file: Mapped[str | None]
    method: Mapped[str]
    """``supervised`` or ``dpo``."""
    hyperparameters: Mapped[dict[str, Any]]
    """The settings asked for, ``auto`` included, until a worker resolves them."""
    seed: Mapped[int]
    suffix: Mapped[str | None]
    integrations: Mapped[list[Any] | None]
    labels: Mapped[dict[str, Any] | None]
    """The API's ``metadata``; never empty."""
    defence: Mapped[dict[str, Any]]
    """``{"name": ..., "options": {...}}``."""
    gate: Mapped[dict[str, Any]]
    """The thresholds that the job was created under."""
    safety: Mapped[dict[str, Any]]
    """What screening and gate found, as far as the customer may see it."""
    private: Mapped[dict[str, Any]]
    """What only the operator may see: row-level results, folder of the run."""
    error: Mapped[dict[str, Any] | None]
    fine_tuned_model: Mapped[str | None]
    result_files: Mapped[list[Any]]
    trained_tokens: Mapped[int | None]
    estimated_finish: Mapped[float | None]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    validated_at: Mapped[float | None]
    """When screening ended; a paused job resumes in the state that follows from it."""
    worker: Mapped[str | None]
    """Who holds the lease."""
    token: Mapped[int] = mapped_column(default=0)
    """Fencing token: rises whenever the lease changes hands, so that a write of an earlier holder is recognised."""
    lease_until: Mapped[float | None]
    attempts: Mapped[int] = mapped_column(default=0)
    """Number of claims since its last new checkpoint."""
    __table_args__ = (
        Index("jobs_by_project", "project_id", "seq"),
        Index("jobs_by_status", "project_id", "status"),
        Index("jobs_to_claim", "status", "lease_until", "seq"),
    )


class JobLabel(Table):
    """A pair of a job's metadata, by which jobs are listed."""

    __tablename__ = "job_labels"
    job_seq: Mapped[int] = mapped_column(Seq, ForeignKey("jobs.seq"), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(String(512))
    project_id: Mapped[str] = mapped_column(String(64))
    """The job's, so that a list of jobs by metadata is one range of the index."""
    __table_args__ = (Index("job_labels_by_value", "project_id", "name", "value", "job_seq"),)


class Creation(Table):
    """The request that created a job, so that a client that sends it again gets the same job."""

    __tablename__ = "creations"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Digest of the key and the body."""
    job_id: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(index=True)
    first_seen: Mapped[bool]
    """Whether the request that was no repetition has arrived."""


class Event(Table):
    """What happened to a job."""

    __tablename__ = "events"
    seq: Mapped[int] = mapped_column(Seq, primary_key=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    job_id: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]
    level: Mapped[str]
    type: Mapped[str]
    message: Mapped[str]
    data: Mapped[dict[str, Any] | None]
    key: Mapped[str | None] = mapped_column(String(128))
    """What a worker that repeats a step after a kill calls the same event again."""
    __table_args__ = (Index("events_by_job", "job_id", "seq"), UniqueConstraint("job_id", "key"))


class Checkpoint(Table):
    """A checkpoint of a job whose adapter is stored."""

    __tablename__ = "checkpoints"
    seq: Mapped[int] = mapped_column(Seq, primary_key=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    job_id: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]
    step: Mapped[int]
    model: Mapped[str]
    """Name of its row in ``models``."""
    metrics: Mapped[dict[str, Any]]
    __table_args__ = (Index("checkpoints_by_job", "job_id", "seq"), UniqueConstraint("job_id", "step"))


class Model(Table):
    """A fine-tuned model: the result of a job, or one of its checkpoints. Nobody reaches it before it is released."""

    __tablename__ = "models"
    seq: Mapped[int] = mapped_column(Seq, primary_key=True)
    name: Mapped[str] = mapped_column(String(512), unique=True)
    """``ft:BASE:ORG:SUFFIX:ID``, with ``:ckpt-step-N`` behind it for a checkpoint."""
    project_id: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(String(64), index=True)
    created_at: Mapped[float]
    base: Mapped[str]
    """The offered base model at the beginning of the chain, against which the gate judges it."""
    parent: Mapped[str | None]
    """The ``ft:`` model that its job continued."""
    adapter: Mapped[str]
    """Prefix of its blobs: a folder as PEFT writes it (adapter_config.json, adapter_model.safetensors), or whole
    weights. ``Blobs.fetch_folder`` brings it to a local folder."""
    step: Mapped[int | None]
    """Step of a checkpoint; None for a job's result."""
    gate: Mapped[dict[str, Any] | None]
    """The gate's table; None before it has judged."""
    released: Mapped[bool] = mapped_column(default=False)
    """Whether the gate, or an operator with a written reason, let it go."""
    deleted_at: Mapped[float | None]
    purged: Mapped[bool] = mapped_column(default=False)
    """Whether the weights of a deleted model are gone too."""
    __table_args__ = (Index("models_by_project", "project_id", "seq"),)


class Permission(Table):
    """Another project of the organisation may use a model."""

    __tablename__ = "permissions"
    seq: Mapped[int] = mapped_column(Seq, primary_key=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    model: Mapped[str] = mapped_column(String(512))
    project_id: Mapped[str] = mapped_column(String(64), index=True)
    created_at: Mapped[float]
    __table_args__ = (UniqueConstraint("model", "project_id"),)


class Webhook(Table):
    """An endpoint of a customer that wants to hear of events."""

    __tablename__ = "webhooks"
    seq: Mapped[int] = mapped_column(Seq, primary_key=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    project_id: Mapped[str] = mapped_column(String(64), index=True)
    created_at: Mapped[float]
    updated_at: Mapped[float]
    name: Mapped[str]
    url: Mapped[str]
    event_types: Mapped[list[Any]]
    secret: Mapped[str]
    old_secret: Mapped[str | None]
    """The one before it was rotated, which signs too until ``old_secret_until``."""
    old_secret_until: Mapped[float | None]
    deleted_at: Mapped[float | None]


class Delivery(Table):
    """An event on its way to an endpoint."""

    __tablename__ = "deliveries"
    seq: Mapped[int] = mapped_column(Seq, primary_key=True)
    event_id: Mapped[str] = mapped_column(String(64))
    webhook_id: Mapped[str] = mapped_column(String(64), index=True)
    type: Mapped[str]
    data: Mapped[dict[str, Any]]
    created_at: Mapped[float]
    due_at: Mapped[float | None] = mapped_column(index=True)
    """When it is tried next; None: delivered, or given up."""
    attempts: Mapped[int] = mapped_column(default=0)
    last_status: Mapped[int | None]
    delivered_at: Mapped[float | None]


class Notice(Table):
    """A safety alert or case."""

    __tablename__ = "notices"
    seq: Mapped[int] = mapped_column(Seq, primary_key=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    project_id: Mapped[str] = mapped_column(String(64), index=True)
    kind: Mapped[str]
    """``alert`` or ``case``."""
    created_at: Mapped[float]
    body: Mapped[dict[str, Any]]
    """The fields of the API's object beside id, object and created_at."""


class Audit(Table):
    """A decision about a model, a key or a job. Rows are only added; triggers of the database refuse all else."""

    __tablename__ = "audit"
    seq: Mapped[int] = mapped_column(Seq, primary_key=True)
    created_at: Mapped[float]
    actor: Mapped[str]
    """Id of a key, or of a worker."""
    action: Mapped[str]
    """``gate.released``, ``gate.refused``, ``model.approved``, ``key.created``, ..."""
    subject: Mapped[str]
    """Id of what it is about."""
    project_id: Mapped[str | None] = mapped_column(String(64))
    data: Mapped[dict[str, Any] | None]


Index(
    "jobs_without_labels",
    Job.project_id,
    Job.seq,
    sqlite_where=Job.labels.is_(None),
    postgresql_where=Job.labels.is_(None),
)
