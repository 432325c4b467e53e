"""The first tables

Revision: 0001.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
SEQ = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
NEED: Any = {"nullable": False}


def upgrade() -> None:
    """Create the tables of this revision."""
    _audit()
    _checkpoints()
    _creations()
    _deliveries()
    _events()
    _files()
    _jobs()
    _models()
    _notices()
    _organizations()
    _permissions()
    _uploads()
    _webhooks()
    _job_labels()
    _parts()
    _projects()
    _keys()
    _only_added("audit")


# fmt: off
def _audit() -> None:
    op.create_table(
        "audit", sa.Column("seq", SEQ, **NEED), sa.Column("created_at", sa.Double(), **NEED),
        sa.Column("actor", sa.Text(), **NEED), sa.Column("action", sa.Text(), **NEED),
        sa.Column("subject", sa.Text(), **NEED), sa.Column("project_id", sa.String(length=64)), sa.Column("data", JSON),
        sa.PrimaryKeyConstraint("seq"),
    )


def _checkpoints() -> None:
    op.create_table(
        "checkpoints", sa.Column("seq", SEQ, **NEED), sa.Column("id", sa.String(length=64), **NEED),
        sa.Column("job_id", sa.String(length=64), **NEED), sa.Column("created_at", sa.Double(), **NEED),
        sa.Column("step", sa.BigInteger(), **NEED), sa.Column("model", sa.Text(), **NEED),
        sa.Column("metrics", JSON, **NEED), sa.PrimaryKeyConstraint("seq"), sa.UniqueConstraint("id"),
        sa.UniqueConstraint("job_id", "step"),
    )
    op.create_index("checkpoints_by_job", "checkpoints", ["job_id", "seq"])


def _creations() -> None:
    op.create_table(
        "creations", sa.Column("digest", sa.String(length=64), **NEED),
        sa.Column("job_id", sa.String(length=64), **NEED), sa.Column("created_at", sa.Double(), **NEED),
        sa.Column("first_seen", sa.Boolean(), **NEED), sa.PrimaryKeyConstraint("digest"),
    )
    op.create_index("ix_creations_created_at", "creations", ["created_at"])


def _deliveries() -> None:
    op.create_table(
        "deliveries", sa.Column("seq", SEQ, **NEED), sa.Column("event_id", sa.String(length=64), **NEED),
        sa.Column("webhook_id", sa.String(length=64), **NEED), sa.Column("type", sa.Text(), **NEED),
        sa.Column("data", JSON, **NEED), sa.Column("created_at", sa.Double(), **NEED), sa.Column("due_at", sa.Double()),
        sa.Column("attempts", sa.BigInteger(), **NEED), sa.Column("last_status", sa.BigInteger()),
        sa.Column("delivered_at", sa.Double()), sa.PrimaryKeyConstraint("seq"),
    )
    op.create_index("ix_deliveries_due_at", "deliveries", ["due_at"])
    op.create_index("ix_deliveries_webhook_id", "deliveries", ["webhook_id"])


def _events() -> None:
    op.create_table(
        "events", sa.Column("seq", SEQ, **NEED), sa.Column("id", sa.String(length=64), **NEED),
        sa.Column("job_id", sa.String(length=64), **NEED), sa.Column("created_at", sa.Double(), **NEED),
        sa.Column("level", sa.Text(), **NEED), sa.Column("type", sa.Text(), **NEED),
        sa.Column("message", sa.Text(), **NEED), sa.Column("data", JSON), sa.Column("key", sa.String(length=128)),
        sa.PrimaryKeyConstraint("seq"), sa.UniqueConstraint("id"), sa.UniqueConstraint("job_id", "key"),
    )
    op.create_index("events_by_job", "events", ["job_id", "seq"])


def _files() -> None:
    op.create_table(
        "files", sa.Column("seq", SEQ, **NEED), sa.Column("id", sa.String(length=64), **NEED),
        sa.Column("project_id", sa.String(length=64), **NEED), sa.Column("created_at", sa.Double(), **NEED),
        sa.Column("expires_at", sa.Double()), sa.Column("purpose", sa.Text(), **NEED),
        sa.Column("filename", sa.Text(), **NEED), sa.Column("bytes", sa.BigInteger(), **NEED),
        sa.Column("status", sa.Text(), **NEED), sa.Column("status_details", sa.Text()), sa.Column("validation", JSON),
        sa.Column("blob", sa.Text(), **NEED), sa.Column("deleted_at", sa.Double()),
        sa.Column("purged", sa.Boolean(), **NEED), sa.PrimaryKeyConstraint("seq"), sa.UniqueConstraint("id"),
    )
    op.create_index("files_by_project", "files", ["project_id", "seq"])
    op.create_index("files_by_size", "files", ["project_id", "deleted_at", "bytes"])
    op.create_index("ix_files_deleted_at", "files", ["deleted_at"])
    op.create_index("ix_files_expires_at", "files", ["expires_at"])
    op.create_index("ix_files_status", "files", ["status"])


def _jobs() -> None:
    op.create_table(
        "jobs", sa.Column("seq", SEQ, **NEED), sa.Column("id", sa.String(length=64), **NEED),
        sa.Column("organization_id", sa.String(length=64), **NEED),
        sa.Column("project_id", sa.String(length=64), **NEED), sa.Column("key_id", sa.String(length=64), **NEED),
        sa.Column("created_at", sa.Double(), **NEED), sa.Column("status", sa.String(length=32), **NEED),
        sa.Column("model", sa.Text(), **NEED), sa.Column("base", sa.Text(), **NEED), sa.Column("parent", sa.Text()),
        sa.Column("training_file", sa.Text(), **NEED), sa.Column("validation_file", sa.Text()),
        sa.Column("method", sa.Text(), **NEED), sa.Column("hyperparameters", JSON, **NEED),
        sa.Column("seed", sa.BigInteger(), **NEED), sa.Column("suffix", sa.Text()), sa.Column("integrations", JSON),
        sa.Column("labels", JSON), sa.Column("defence", JSON, **NEED), sa.Column("gate", JSON, **NEED),
        sa.Column("safety", JSON, **NEED), sa.Column("private", JSON, **NEED), sa.Column("error", JSON),
        sa.Column("fine_tuned_model", sa.Text()), sa.Column("result_files", JSON, **NEED),
        sa.Column("trained_tokens", sa.BigInteger()), sa.Column("estimated_finish", sa.Double()),
        sa.Column("started_at", sa.Double()), sa.Column("finished_at", sa.Double()),
        sa.Column("validated_at", sa.Double()), sa.Column("worker", sa.Text()),
        sa.Column("token", sa.BigInteger(), **NEED), sa.Column("lease_until", sa.Double()),
        sa.Column("attempts", sa.BigInteger(), **NEED), sa.PrimaryKeyConstraint("seq"), sa.UniqueConstraint("id"),
    )
    op.create_index("jobs_by_project", "jobs", ["project_id", "seq"])
    op.create_index("jobs_by_status", "jobs", ["project_id", "status"])
    op.create_index("jobs_to_claim", "jobs", ["status", "lease_until", "seq"])
    op.create_index("jobs_without_labels", "jobs", ["project_id", "seq"],
        sqlite_where=sa.text("labels IS NULL"), postgresql_where=sa.text("labels IS NULL"))


def _models() -> None:
    op.create_table(
        "models", sa.Column("seq", SEQ, **NEED), sa.Column("name", sa.String(length=512), **NEED),
        sa.Column("project_id", sa.String(length=64), **NEED), sa.Column("job_id", sa.String(length=64), **NEED),
        sa.Column("created_at", sa.Double(), **NEED), sa.Column("base", sa.Text(), **NEED),
        sa.Column("parent", sa.Text()), sa.Column("adapter", sa.Text(), **NEED), sa.Column("step", sa.BigInteger()),
        sa.Column("gate", JSON), sa.Column("released", sa.Boolean(), **NEED), sa.Column("deleted_at", sa.Double()),
        sa.Column("purged", sa.Boolean(), **NEED), sa.PrimaryKeyConstraint("seq"), sa.UniqueConstraint("name"),
    )
    op.create_index("ix_models_job_id", "models", ["job_id"])
    op.create_index("models_by_project", "models", ["project_id", "seq"])


def _notices() -> None:
    op.create_table(
        "notices", sa.Column("seq", SEQ, **NEED), sa.Column("id", sa.String(length=64), **NEED),
        sa.Column("project_id", sa.String(length=64), **NEED), sa.Column("kind", sa.Text(), **NEED),
        sa.Column("created_at", sa.Double(), **NEED), sa.Column("body", JSON, **NEED), sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("id"),
    )
    op.create_index("ix_notices_project_id", "notices", ["project_id"])


def _organizations() -> None:
    op.create_table(
        "organizations", sa.Column("id", sa.String(length=64), **NEED), sa.Column("name", sa.String(length=64), **NEED),
        sa.Column("created_at", sa.Double(), **NEED), sa.PrimaryKeyConstraint("id"), sa.UniqueConstraint("name"),
    )


def _permissions() -> None:
    op.create_table(
        "permissions", sa.Column("seq", SEQ, **NEED), sa.Column("id", sa.String(length=64), **NEED),
        sa.Column("model", sa.String(length=512), **NEED), sa.Column("project_id", sa.String(length=64), **NEED),
        sa.Column("created_at", sa.Double(), **NEED), sa.PrimaryKeyConstraint("seq"), sa.UniqueConstraint("id"),
        sa.UniqueConstraint("model", "project_id"),
    )
    op.create_index("ix_permissions_project_id", "permissions", ["project_id"])


def _uploads() -> None:
    op.create_table(
        "uploads", sa.Column("id", sa.String(length=64), **NEED), sa.Column("project_id", sa.String(length=64), **NEED),
        sa.Column("created_at", sa.Double(), **NEED), sa.Column("expires_at", sa.Double(), **NEED),
        sa.Column("bytes", sa.BigInteger(), **NEED), sa.Column("filename", sa.Text(), **NEED),
        sa.Column("mime_type", sa.Text(), **NEED), sa.Column("purpose", sa.Text(), **NEED),
        sa.Column("expires_after", sa.BigInteger()), sa.Column("status", sa.Text(), **NEED),
        sa.Column("file_id", sa.String(length=64)), sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_uploads_expires_at", "uploads", ["expires_at"])
    op.create_index("ix_uploads_project_id", "uploads", ["project_id"])


def _webhooks() -> None:
    op.create_table(
        "webhooks", sa.Column("seq", SEQ, **NEED), sa.Column("id", sa.String(length=64), **NEED),
        sa.Column("project_id", sa.String(length=64), **NEED), sa.Column("created_at", sa.Double(), **NEED),
        sa.Column("updated_at", sa.Double(), **NEED), sa.Column("name", sa.Text(), **NEED),
        sa.Column("url", sa.Text(), **NEED), sa.Column("event_types", JSON, **NEED),
        sa.Column("secret", sa.Text(), **NEED), sa.Column("old_secret", sa.Text()),
        sa.Column("old_secret_until", sa.Double()), sa.Column("deleted_at", sa.Double()),
        sa.PrimaryKeyConstraint("seq"), sa.UniqueConstraint("id"),
    )
    op.create_index("ix_webhooks_project_id", "webhooks", ["project_id"])


def _job_labels() -> None:
    op.create_table(
        "job_labels", sa.Column("job_seq", SEQ, **NEED), sa.Column("name", sa.String(length=64), **NEED),
        sa.Column("value", sa.String(length=512), **NEED), sa.ForeignKeyConstraint(["job_seq"], ["jobs.seq"]),
        sa.PrimaryKeyConstraint("job_seq", "name"),
    )
    op.create_index("job_labels_by_value", "job_labels", ["name", "value", "job_seq"])


def _parts() -> None:
    op.create_table(
        "parts", sa.Column("id", sa.String(length=64), **NEED), sa.Column("upload_id", sa.String(length=64), **NEED),
        sa.Column("created_at", sa.Double(), **NEED), sa.Column("bytes", sa.BigInteger(), **NEED),
        sa.Column("blob", sa.Text()), sa.ForeignKeyConstraint(["upload_id"], ["uploads.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_parts_upload_id", "parts", ["upload_id"])


def _projects() -> None:
    op.create_table(
        "projects", sa.Column("id", sa.String(length=64), **NEED),
        sa.Column("organization_id", sa.String(length=64), **NEED), sa.Column("name", sa.Text(), **NEED),
        sa.Column("created_at", sa.Double(), **NEED),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"]), sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_projects_organization_id", "projects", ["organization_id"])


def _keys() -> None:
    op.create_table(
        "keys", sa.Column("id", sa.String(length=64), **NEED), sa.Column("digest", sa.String(length=64), **NEED),
        sa.Column("hint", sa.Text(), **NEED), sa.Column("name", sa.Text(), **NEED),
        sa.Column("scope", sa.Text(), **NEED), sa.Column("project_id", sa.String(length=64), **NEED),
        sa.Column("created_at", sa.Double(), **NEED), sa.Column("expires_at", sa.Double()),
        sa.Column("revoked_at", sa.Double()), sa.ForeignKeyConstraint(["project_id"], ["projects.id"]),
        sa.PrimaryKeyConstraint("id"), sa.UniqueConstraint("digest"),
    )
    op.create_index("ix_keys_project_id", "keys", ["project_id"])
# fmt: on


def _only_added(table: str) -> None:
    """Have the database itself refuse to change or remove a row."""
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{table} is append-only'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only()"
    )
