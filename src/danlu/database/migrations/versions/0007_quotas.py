"""Quotas: what projects and groups of them are guaranteed, and may have at most."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"

ID = sa.String(length=80).with_variant(sa.String(length=80, collation="C"), "postgresql")
BODY = sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql")


def upgrade() -> None:
    """Creates the table."""
    op.create_table(
        "quotas",
        sa.Column("id", ID, nullable=False),
        sa.Column("project", sa.String(length=63), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("parent", sa.String(length=63), nullable=True),
        sa.Column("body", BODY, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quotas")),
    )
    op.create_index("ix_quotas_parent", "quotas", ["parent"], unique=False)
