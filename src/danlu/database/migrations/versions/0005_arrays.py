"""Job arrays, and jobs that are held."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"

ID = sa.String(length=80).with_variant(sa.String(length=80, collation="C"), "postgresql")
BODY = sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql")


def upgrade() -> None:
    """Creates the table of arrays; adds its id, and whether it is held, to jobs."""
    op.create_table(
        "arrays",
        sa.Column("id", ID, nullable=False),
        sa.Column("project", sa.String(length=63), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("body", BODY, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_arrays")),
    )
    op.create_index("ix_arrays_project_name_id", "arrays", ["project", "name", "id"], unique=False)
    op.add_column("jobs", sa.Column("array_id", sa.String(length=27), nullable=True))
    op.add_column("jobs", sa.Column("held", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_index("ix_jobs_array_id_id", "jobs", ["array_id", "id"], unique=False)
