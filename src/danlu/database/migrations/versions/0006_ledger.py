"""The ledger and the prices. What is held when it comes is metered from then on; what was before is not known."""

import json
import time
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"

ID = sa.String(length=80).with_variant(sa.String(length=80, collation="C"), "postgresql")
BODY = sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql")
SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Creates the tables, and opens the meters of the nodes and of the attempts that hold something."""
    meters = op.create_table(
        "meters",
        sa.Column("object_id", ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("body", BODY, nullable=False),
        sa.PrimaryKeyConstraint("object_id", "number", name=op.f("pk_meters")),
    )
    line = ("project", "user", "model", "gpu_kind", "cpu_milli", "memory_bytes", "gpus", "debit", "credit")
    op.create_table(
        "ledger_lines",
        sa.Column("id", SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("project", sa.String(length=63), nullable=False),
        sa.Column("user", sa.String(length=80), nullable=False),
        sa.Column("model", sa.String(length=256), nullable=False),
        sa.Column("gpu_kind", sa.String(length=256), nullable=False),
        sa.Column("cpu_milli", sa.BigInteger(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("debit", sa.String(length=16), nullable=False),
        sa.Column("credit", sa.String(length=16), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_lines")),
        sa.UniqueConstraint(*line, name="uq_ledger_lines_all"),
    )
    op.create_table(
        "ledger",
        sa.Column("object_id", ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("begun", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("line", sa.BigInteger(), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("node", sa.String(length=253), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.Column("unused_cpu_ns", sa.BigInteger(), nullable=False),
        sa.Column("unused_mib_s", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("object_id", "number", "begun", "part", name=op.f("pk_ledger")),
    )
    read = ["line", "day", "since", "until", "unused_cpu_ns", "unused_mib_s"]
    op.create_index("ix_ledger_line_day", "ledger", read, unique=False)
    op.create_table(
        "prices",
        sa.Column("id", ID, nullable=False),
        sa.Column("project", sa.String(length=63), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("resource", sa.String(length=80), nullable=False),
        sa.Column("body", BODY, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prices")),
    )
    op.create_index("ix_prices_resource", "prices", ["resource"], unique=False)
    rows = _open(op.get_bind(), time.time_ns())
    if rows:
        op.bulk_insert(meters, rows)


def _open(connection: sa.Connection, now: int) -> list[dict[str, Any]]:
    """Returns the meters of what is held now."""
    kinds: dict[str, dict[int, str]] = {}
    rows: list[dict[str, Any]] = []
    for name, body in connection.execute(sa.text("SELECT id, body FROM nodes")).all():
        capacity = _json(body)["capacity"]
        kinds[name] = {gpu["index"]: gpu["kind"] for gpu in capacity["gpus"]}
        for number, amounts in enumerate(_amounts(capacity, [gpu["kind"] for gpu in capacity["gpus"]])):
            # a node that is gone has nothing by now: it has nothing that could be broken
            meter = {"project": "", "user": "", "model": "", "node": name, "rank": 0, "account": "free", "since": now}
            rows.append({"object_id": name, "number": number, "body": meter | amounts})
    held = (
        "SELECT a.id, a.project, a.body, j.body FROM attempts a JOIN jobs j ON j.id = a.job_id WHERE a.state <> 'ended'"
    )
    for attempt, project, body, job_body in connection.execute(sa.text(held)).all():
        job, number = _json(job_body), 0
        who = {"project": project, "user": job["created_by"], "model": job["spec"].get("labels", {}).get("model", "")}
        for task in _json(body)["tasks"]:
            found = [kinds.get(task["node"], {}).get(device, "gpu") for device in task["devices"]]
            for amounts in _amounts(task["resources"], found):
                meter = {**who, "node": task["node"], "rank": task["rank"], "account": None, "since": now}
                rows.append({"object_id": attempt, "number": number, "body": meter | amounts})
                number += 1
    return rows


def _json(body: Any) -> Any:
    return json.loads(body) if isinstance(body, str) else body


def _amounts(resources: dict[str, Any], kinds: list[str]) -> list[dict[str, Any]]:
    counts = [(kind, kinds.count(kind)) for kind in sorted(set(kinds))] or [("", 0)]
    return [
        {
            "cpu_milli": 0 if at else resources["cpu_milli"], "memory_bytes": 0 if at else resources["memory_bytes"],
            "gpus": count, "gpu_kind": kind,
        }
        for at, (kind, count) in enumerate(counts)
    ]  # fmt: skip
