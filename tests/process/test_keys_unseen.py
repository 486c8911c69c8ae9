"""A job that looks everywhere finds no key of the platform, and no token but its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from danlu.domain.isolation import Layer
from danlu.domain.jobs import JobState
from tests.conftest import cannot_run
from tests.process import escapes
from tests.process.inside import running
from tests.process.platform import Server

SEARCH = r"""
import json, os, stat, sys
wanted = {bytes.fromhex(text): text for text in json.loads(os.environ["WANTED"])}
own = open(os.environ["DANLU_TOKEN_FILE"], "rb").read()
wanted[own] = "its own"
here = os.path.dirname(os.environ["DANLU_TOKEN_FILE"])
places = [*json.loads(os.environ["FOLDERS"]), here, os.environ["HOME"], "/tmp", "/var/tmp", "/dev/shm", "/run"]
found = []

def look(path):
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return
    with open(descriptor, "rb") as file:
        try:
            data = file.read(1 << 20) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
        except OSError:
            return
    found.extend([path, text] for value, text in wanted.items() if value in data)

for place in places:
    for folder, _, names in os.walk(place):
        for name in names:
            look(os.path.join(folder, name))
for process in os.listdir("/proc"):
    for name in ("environ", "cmdline"):
        look("/proc/%s/%s" % (process, name))
print(json.dumps(found))
"""


def keys(server: Server) -> set[bytes]:
    """Returns whatever in the folder of keys is long enough to be one."""
    files = [path for path in (server.home / "keys").rglob("*") if path.is_file()]
    found = {word for path in files for word in re.findall(rb"[\w+/=-]{20,}", path.read_bytes())}
    whole = {path.read_bytes() for path in files}
    return found | {data for data in whole if len(data) >= 16}


@pytest.fixture
def home() -> Iterator[Path]:
    """What lies below /tmp is hidden by another layer too."""
    with escapes.public_folder() as folder:
        yield folder / "home"


def test_a_job_finds_no_key(server: Server) -> None:
    neighbour = running(server, "sleep", "1000", name="neighbour")
    folder = server.home / "attempts" / f"{neighbour.id}-1"
    wanted = sorted(value.hex() for value in {*keys(server), (folder / "token").read_bytes()})
    assert len(wanted) > 2
    variables = {"WANTED": json.dumps(wanted), "FOLDERS": json.dumps([str(server.home), str(folder)])}
    job = server.submit("python", "-c", SEARCH, name="search", variables=variables)
    assert server.wait(job.id, 300).state is JobState.SUCCEEDED, server.lines(job.id, 1)
    with server.client() as client:
        (attempt,) = client.call("jobs.attempts", {"job": job.id}).items
    if Layer.CLOSED_DATA_FOLDER not in attempt.limits:
        cannot_run("this machine has no closed-data-folder")
    own = server.home / "attempts" / attempt.id / "token"
    found = {(path, what) for path, what in json.loads(server.lines(job.id, 1)[-1])}
    assert found == {(str(own), "its own")}
