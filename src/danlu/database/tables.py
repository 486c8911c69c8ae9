"""Tables: a column for what is filtered, ordered, unique or guarded; the rest of a record is the JSON column ``body``."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from danlu.domain.jobs import LIVE_JOB_STATES

NAMING: Final = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
METADATA: Final = MetaData(naming_convention=NAMING)
BODY: Final = JSON().with_variant(JSONB(), "postgresql")
# in the order of its bytes, which is the order of time, whatever the database's language
ID: Final = String(80).with_variant(String(80, collation="C"), "postgresql")
SEQUENCE: Final = BigInteger().with_variant(Integer(), "sqlite")
LIVE: Final = text("state IN (" + ", ".join(f"'{state}'" for state in sorted(LIVE_JOB_STATES)) + ")")


def _record(name: str, *columns: Column[object] | UniqueConstraint | Index) -> Table:
    return Table(
        name,
        METADATA,
        Column("id", ID, primary_key=True),
        Column("project", String(63), nullable=False),
        Column("version", Integer, nullable=False),
        *columns,
        Column("body", BODY, nullable=False),
    )


jobs: Final = _record(
    "jobs",
    Column("name", String(63), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", String(40)),
    Column("desired", String(8), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("queued_at", BigInteger, nullable=False),
    Column("not_before", BigInteger, nullable=False),
    Column("environment_id", String(27)),
    Column("checkpoint_owner", String(27), nullable=False),
    Column("array_id", String(27)),
    Column("held", Boolean, nullable=False, server_default=false()),
    Index("ix_jobs_project_id", "project", "id"),
    Index("ix_jobs_project_name_id", "project", "name", "id"),
    Index("ix_jobs_state_id", "state", "id"),
    Index("ix_jobs_array_id_id", "array_id", "id"),
)
Index("uq_jobs_live_name", jobs.c.project, jobs.c.name, unique=True, sqlite_where=LIVE, postgresql_where=LIVE)
# one live job at a time writes into a checkpoint folder
Index("uq_jobs_live_checkpoint_owner", jobs.c.checkpoint_owner, unique=True, sqlite_where=LIVE, postgresql_where=LIVE)

arrays: Final = _record(
    "arrays",
    Column("name", String(63), nullable=False),
    Index("ix_arrays_project_name_id", "project", "name", "id"),
)
attempts: Final = _record(
    "attempts",
    Column("job_id", String(27), nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("collected", Boolean, nullable=False),
    UniqueConstraint("job_id", "number"),
)
OPEN_ATTEMPT: Final = text("state <> 'ended'")
UNCOLLECTED: Final = text("NOT collected")
Index("ix_attempts_open", attempts.c.id, sqlite_where=OPEN_ATTEMPT, postgresql_where=OPEN_ATTEMPT)
Index("ix_attempts_uncollected", attempts.c.id, sqlite_where=UNCOLLECTED, postgresql_where=UNCOLLECTED)

nodes: Final = _record("nodes")
projects: Final = _record("projects", Column("number", Integer, nullable=False, unique=True))
quotas: Final = _record("quotas", Column("parent", String(63)), Index("ix_quotas_parent", "parent"))
users: Final = _record("users", Column("name", String(63), nullable=False, unique=True))
members: Final = _record(
    "members",
    Column("user", String(27), nullable=False),
    Column("name", String(63), nullable=False),
    UniqueConstraint("project", "user"),
    Index("ix_members_user", "user"),
)
keys: Final = _record(
    "keys",
    Column("user", String(27), nullable=False),
    Column("made_by", String(27), nullable=False),
    Index("ix_keys_user", "user"),
    Index("ix_keys_made_by", "made_by"),
)
tokens: Final = _record(
    "tokens",
    Column("user", String(27), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("made_by", String(27), nullable=False),
    Index("ix_tokens_user", "user"),
    Index("ix_tokens_made_by", "made_by"),
)
CURRENT: Final = text("replaced_at IS NULL")
secrets: Final = _record(
    "secrets",
    Column("name", String(63), nullable=False),
    Column("replaced_at", BigInteger),
    Index("ix_secrets_project_name", "project", "name"),
)
Index(
    "uq_secrets_current_name", secrets.c.project, secrets.c.name, unique=True,
    sqlite_where=CURRENT, postgresql_where=CURRENT,
)  # fmt: skip
environments: Final = _record(
    "environments",
    Column("source_digest", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    UniqueConstraint("project", "source_digest"),
    Index("ix_environments_state", "state"),
)
artifacts: Final = _record(
    "artifacts",
    Column("job_id", String(27), nullable=False),
    Column("attempt_id", String(40), nullable=False),
    Column("name", String(63), nullable=False),
    UniqueConstraint("attempt_id", "name"),
    Index("ix_artifacts_job_id_id", "job_id", "id"),
)
# what has left pods: checkpoints, and outputs until their attempt is collected
checkpoints: Final = _record(
    "checkpoints",
    Column("owner", String(27), nullable=False),
    Column("attempt_id", String(40), nullable=False),
    Column("task", String(100), nullable=False),
    Column("name", String(255), nullable=False),
    UniqueConstraint("attempt_id", "task", "name"),
    Index("ix_checkpoints_owner", "owner"),
)
outputs: Final = _record(
    "outputs",
    Column("attempt_id", String(40), nullable=False),
    Column("task", String(100), nullable=False),
    UniqueConstraint("attempt_id", "task"),
)
# what runners in pods say of their tasks, newest only; gone when their attempt is collected
reports: Final = Table(
    "reports",
    METADATA,
    Column("attempt_id", ID, primary_key=True),
    Column("task", String(80), primary_key=True),
    Column("seen_at", BigInteger, nullable=False),
    Column("body", BODY, nullable=False),
)
events: Final = Table(
    "events",
    METADATA,
    Column("seq", SEQUENCE, primary_key=True, autoincrement=True),
    Column("project", String(63), nullable=False),
    Column("object_id", String(80), nullable=False),
    Column("body", BODY, nullable=False),
    Index("ix_events_project_seq", "project", "seq"),
    Index("ix_events_object_id_seq", "object_id", "seq"),
    sqlite_autoincrement=True,
)
nonces: Final = Table(
    "nonces",
    METADATA,
    Column("key", String(27), primary_key=True),
    Column("nonce", String(64), primary_key=True),
    Column("until_s", BigInteger, nullable=False),
    Index("ix_nonces_until_s", "until_s"),
)
counters: Final = Table(
    "counters",
    METADATA,
    Column("project", String(63), primary_key=True),
    Column("name", String(80), primary_key=True),
    Column("value", BigInteger, nullable=False),
)
# the open meters: what is held now; deleted when what they counted is in the ledger
meters: Final = Table(
    "meters",
    METADATA,
    Column("object_id", ID, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("body", BODY, nullable=False),
)
# what many entries of the ledger have in common; each combination once
ledger_lines: Final = Table(
    "ledger_lines",
    METADATA,
    Column("id", SEQUENCE, primary_key=True, autoincrement=True),
    Column("project", String(63), nullable=False),
    Column("user", String(80), nullable=False),
    Column("model", String(256), nullable=False),
    Column("gpu_kind", String(256), nullable=False),
    Column("cpu_milli", BigInteger, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("gpus", Integer, nullable=False),
    Column("debit", String(16), nullable=False),
    Column("credit", String(16), nullable=False),
    UniqueConstraint(
        "project", "user", "model", "gpu_kind", "cpu_milli", "memory_bytes", "gpus", "debit", "credit",
        name="uq_ledger_lines_all",
    ),
)  # fmt: skip
# append-only
ledger: Final = Table(
    "ledger",
    METADATA,
    Column("object_id", ID, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("begun", BigInteger, primary_key=True, autoincrement=False),
    Column("part", Integer, primary_key=True),
    Column("line", BigInteger, nullable=False),
    Column("day", Integer, nullable=False),
    Column("node", String(253), nullable=False),
    Column("since", BigInteger, nullable=False),
    Column("until", BigInteger, nullable=False),
    Column("unused_cpu_ns", BigInteger, nullable=False),
    Column("unused_mib_s", BigInteger, nullable=False),
    # a report reads nothing else, in the order in which it groups
    Index("ix_ledger_line_day", "line", "day", "since", "until", "unused_cpu_ns", "unused_mib_s"),
)
prices: Final = _record(
    "prices", Column("resource", String(80), nullable=False), Index("ix_prices_resource", "resource")
)
# how many bytes each project stores: see stored.py
stored: Final = Table(
    "stored",
    METADATA,
    Column("project", String(63), primary_key=True),
    Column("used_bytes", BigInteger, nullable=False),
    Column("blob_bytes", BigInteger, nullable=False),
    Column("changes", BigInteger, nullable=False),
    Column("changed_at", BigInteger, nullable=False),
    Column("counted_at", BigInteger, nullable=False),
)
stored_things: Final = Table(
    "stored_things",
    METADATA,
    Column("project", String(63), primary_key=True),
    Column("name", String(80), primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("until", BigInteger, nullable=False),
    Index("ix_stored_things_until", "until"),
)
# one row: who leads. Its key is the epoch, so that a write that holds on to it does not wait for a renewal: see leadership.py
leadership: Final = Table(
    "leadership",
    METADATA,
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("holder", String(80), nullable=False),
    Column("place", String(400), nullable=False),
    Column("folder", String(80), nullable=False),
    Column("since", BigInteger, nullable=False),
    Column("until", BigInteger, nullable=False),
)
