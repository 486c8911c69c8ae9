"""A full disk: what was acknowledged is kept, what was not is refused in words, and all goes on once there is room."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from danlu.domain.jobs import Job, JobState
from danlu.domain.trees import address_of
from danlu.errors import DanluError, StorageFull
from tests.process.platform import Server, until

DISK_BYTES = 64 * 2**20
LINES = 400
PROGRAM = f"""
import os, time
for number in range({LINES}):
    left = b"line %d\\n" % number
    while left:
        try:
            left = left[os.write(1, left):]
        except OSError:
            time.sleep(0.05)
    time.sleep(0.01)
"""


@pytest.fixture
def small(small_disk: Callable[[int], Path]) -> Iterator[Server]:
    """A server whose data folder is a small file system of its own."""
    disk = small_disk(DISK_BYTES)
    disk.chmod(0o711)  # it alone: above are /tmp and the machine's root, which are not the test's
    server = Server(disk / "home")
    assert server.start().get("ready")
    yield server
    server.close()


def fill(server: Server) -> Path:
    """Leaves no byte free."""
    path = server.home.parent / "filler"
    with path.open("ab", buffering=0) as file:
        for size in (2**20, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return path


def submit_until_refused(server: Server) -> tuple[list[Job], StorageFull]:
    """Returns the jobs that were accepted and why the next one was not: the database has some room of its own."""
    accepted: list[Job] = []
    for number in range(2000):
        try:
            job = server.submit("true", name=f"job-{number}")
        except StorageFull as refused:
            return accepted, refused
        accepted.append(job)
    raise AssertionError("a full disk took 2,000 jobs")


def test_nothing_acknowledged_is_lost_and_all_goes_on(small: Server) -> None:
    printing = small.submit("python", "-c", PROGRAM, name="printing")
    until(lambda: small.job(printing.id).state is JobState.RUNNING, 30, "it runs")
    filler = fill(small)
    accepted, refused = submit_until_refused(small)
    assert refused.next_step
    blob = os.urandom(2**20)
    with pytest.raises(StorageFull), small.client() as client:
        client.upload(address_of(blob), io.BytesIO(blob), len(blob))
    assert small.job(printing.id).id == printing.id  # it can still be asked
    filler.unlink()
    until(lambda: _accepts(small), 30, "it accepts jobs again")
    with small.client() as client:
        client.upload(address_of(blob), io.BytesIO(blob), len(blob))
    assert small.wait(printing.id, 60).state is JobState.SUCCEEDED
    assert small.lines(printing.id, 1) == [f"line {number}" for number in range(LINES)]
    for job in accepted:
        assert small.wait(job.id, 60).state is JobState.SUCCEEDED


def test_a_server_killed_on_a_full_disk_says_why_it_cannot_start_and_starts_with_room(small: Server) -> None:
    job = small.submit("python", "-c", PROGRAM, name="printing")
    until(lambda: small.job(job.id).state is JobState.RUNNING, 30, "it runs")
    filler = fill(small)
    small.kill()
    said = small.start()
    assert said.get("ready") or said["error"]["code"] == "StorageFull", str(said)
    if said.get("ready"):
        small.kill()
    filler.unlink()
    assert small.start().get("ready")
    ended = small.wait(job.id, 60)
    assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 1)
    assert small.lines(job.id, 1) == [f"line {number}" for number in range(LINES)]


def _accepts(server: Server) -> bool:
    try:
        server.submit("true", name="accepted")
    except DanluError as error:
        return "accepted" in error.message
    return True
