"""What leaves pods: checkpoints, and outputs until their attempt is collected."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Creates the tables."""
    body = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    identity = sa.String(length=80).with_variant(sa.String(length=80, collation="C"), "postgresql")
    op.create_table(
        "checkpoints",
        sa.Column("id", identity, nullable=False),
        sa.Column("project", sa.String(length=63), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(length=27), nullable=False),
        sa.Column("attempt_id", sa.String(length=40), nullable=False),
        sa.Column("task", sa.String(length=100), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("body", body, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoints")),
        sa.UniqueConstraint("attempt_id", "task", "name", name=op.f("uq_checkpoints_attempt_id_task_name")),
    )
    op.create_index("ix_checkpoints_owner", "checkpoints", ["owner"], unique=False)
    op.create_table(
        "outputs",
        sa.Column("id", identity, nullable=False),
        sa.Column("project", sa.String(length=63), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("attempt_id", sa.String(length=40), nullable=False),
        sa.Column("task", sa.String(length=100), nullable=False),
        sa.Column("body", body, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outputs")),
        sa.UniqueConstraint("attempt_id", "task", name=op.f("uq_outputs_attempt_id_task")),
    )
