"""Labels of a project's jobs in the order of its lists

Revision: 0003. A list by metadata reads as many rows of the index as it shows, however many jobs have the label.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Give labels the project of their job."""
    op.add_column("job_labels", sa.Column("project_id", sa.String(length=64)))
    op.execute(
        "UPDATE job_labels SET project_id = (SELECT jobs.project_id FROM jobs WHERE jobs.seq = job_labels.job_seq)"
    )
    op.drop_index("job_labels_by_value", "job_labels")
    with op.batch_alter_table("job_labels") as table:
        table.alter_column("project_id", existing_type=sa.String(length=64), nullable=False)
    op.create_index("job_labels_by_value", "job_labels", ["project_id", "name", "value", "job_seq"])
