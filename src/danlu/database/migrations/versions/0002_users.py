"""Users, members and access keys; tokens belong to a user; nonces, so that no signed request is done twice."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

ID = sa.String(length=80).with_variant(sa.String(length=80, collation="C"), "postgresql")
BODY = sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql")


def _record(name: str, *columns: sa.Column[str], unique: tuple[str, ...] = ()) -> None:
    constraints = [sa.UniqueConstraint(*unique, name=op.f(f"uq_{name}_{'_'.join(unique)}"))] if unique else []
    op.create_table(
        name,
        sa.Column("id", ID, nullable=False),
        sa.Column("project", sa.String(length=63), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        *columns,
        sa.Column("body", BODY, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{name}")),
        *constraints,
    )


def upgrade() -> None:
    """Creates the tables; tokens that were made before belong to nobody, and so open nothing any more."""
    user = sa.String(length=27)
    _record("users", sa.Column("name", sa.String(length=63), nullable=False), unique=("name",))
    _record(
        "members",
        sa.Column("user", user, nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        unique=("project", "user"),
    )
    op.create_index("ix_members_user", "members", ["user"], unique=False)
    _record("keys", sa.Column("user", user, nullable=False))
    op.create_index("ix_keys_user", "keys", ["user"], unique=False)
    with op.batch_alter_table("tokens") as tokens:
        tokens.add_column(sa.Column("user", user, nullable=False, server_default=""))
    with op.batch_alter_table("tokens") as tokens:
        tokens.alter_column("user", server_default=None)
    op.create_index("ix_tokens_user", "tokens", ["user"], unique=False)
    op.create_table(
        "nonces",
        sa.Column("key", sa.String(length=27), nullable=False),
        sa.Column("nonce", sa.String(length=64), nullable=False),
        sa.Column("until_s", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key", "nonce", name=op.f("pk_nonces")),
    )
    op.create_index("ix_nonces_until_s", "nonces", ["until_s"], unique=False)
