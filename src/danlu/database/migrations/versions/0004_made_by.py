"""Access keys and tokens know by which of them they were made; of those that were made before it is not known."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Adds the column to both tables."""
    for name in ("keys", "tokens"):
        with op.batch_alter_table(name) as table:
            table.add_column(sa.Column("made_by", sa.String(length=27), nullable=False, server_default=""))
        with op.batch_alter_table(name) as table:
            table.alter_column("made_by", server_default=None)
        op.create_index(f"ix_{name}_made_by", name, ["made_by"], unique=False)
