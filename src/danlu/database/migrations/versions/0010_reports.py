"""What runners in pods report of their tasks."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"

ID = sa.String(length=80).with_variant(sa.String(length=80, collation="C"), "postgresql")
BODY = sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql")


def upgrade() -> None:
    """Creates the table."""
    op.create_table(
        "reports",
        sa.Column("attempt_id", ID, nullable=False),
        sa.Column("task", sa.String(length=80), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.Column("body", BODY, nullable=False),
        sa.PrimaryKeyConstraint("attempt_id", "task", name=op.f("pk_reports")),
    )
