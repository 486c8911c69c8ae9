"""What tests do with a database: store jobs, do things at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from danlu.database.engine import Database, Transaction
from danlu.database.records import JOBS
from danlu.domain.jobs import Job, JobState, Reason
from tests.factories import NOW

WAIT_S = 30


def add(database: Database, *jobs: Job) -> None:
    def work(tx: Transaction) -> None:
        for job in jobs:
            JOBS.add(tx, job)

    database.write(work)


def ended(job: Job) -> Job:
    return job.moved(JobState.CANCELLED, now=NOW + 1, reason=Reason.STOPPED)


def together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Runs ``work(0..count-1)`` at the same time; an exception is its result."""
    ready = threading.Barrier(count)

    def one(number: int) -> Any:
        ready.wait(WAIT_S)
        try:
            return work(number)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


MADE = {
    "0006": ("meters", "ledger", "ledger_lines", "prices"), "0007": ("quotas",), "0008": ("stored", "stored_things"),
    "0009": ("leadership",), "0010": ("reports",), "0011": ("checkpoints", "outputs"),
}  # fmt: skip
"""The tables that each step of the schema has made."""


def set_back(execute: Callable[[str], object], revision: str) -> None:
    """Makes a database one that an older version left: what later steps have made is gone."""
    for table in (table for made, tables in MADE.items() if made > revision for table in tables):
        execute(f"DROP TABLE {table}")
    execute(f"UPDATE alembic_version SET version_num = '{revision}'")
