"""Environments on each database: many jobs that want the same one at the same time have it, once."""

from __future__ import annotations

import secrets
from pathlib import Path

from danlu.blobs.local import LocalBlobs
from danlu.blobs.local_streams import LocalStreams
from danlu.database.engine import Database
from danlu.database.records import ENVIRONMENTS, PROJECTS
from danlu.domain.actors import Actor
from danlu.domain.jobs import Job
from danlu.domain.specs import JobSpec
from danlu.services import jobs
from danlu.services.context import Call, Platform, PlatformFacts
from danlu.services.vault import Vault
from tests.contracts.test_stored import Clock
from tests.databases import together
from tests.factories import NOW, make_project

SUBMITS = 8


def test_jobs_that_are_the_first_to_want_an_environment_share_it(database: Database, tmp_path: Path) -> None:
    platform = Platform(
        database=database, blobs=LocalBlobs(tmp_path), streams=LocalStreams(tmp_path), clock=Clock(),
        random_bits=secrets.randbits, attempt_key=b"k" * 32, vault=Vault(b"m" * 32, secrets.token_bytes),
        facts=PlatformFacts(home="/", started_at=NOW, isolation="one user", host_environment=False, images="podman"),
    )  # fmt: skip
    database.write(lambda tx: PROJECTS.add(tx, make_project()))

    def submit(number: int) -> Job:
        call = Call(platform, Actor(id="k", name="admin", administrator=True), "default")
        return jobs.submit(call, platform.new_id("j"), JobSpec(command="true", image=f"python:{number // SUBMITS}"))

    for first in range(0, 5 * SUBMITS, SUBMITS):
        done = together(SUBMITS, lambda at, first=first: submit(first + at))
        assert [type(one) for one in done] == [Job] * SUBMITS, done
        assert len({job.environment_id for job in done}) == 1
    assert len(database.read(lambda tx: ENVIRONMENTS.find(tx, limit=100))) == 5
