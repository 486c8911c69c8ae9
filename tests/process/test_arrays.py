"""An array of real jobs: no more at once than may, in order after what they depend on, whole after a crash of the server."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from danlu.api.bodies import JobsQuery, TimeoutQuery
from danlu.cli import exits
from danlu.client.lists import listed
from danlu.domain.jobs import Job, JobState
from tests.process.commands import Person
from tests.process.platform import Server

ELEMENTS = 6
TIMEOUT_S = 120.0
SCRIPT = (
    'echo "$SLURM_ARRAY_TASK_ID of $SLURM_ARRAY_TASK_COUNT, $SLURM_ARRAY_TASK_MIN to $SLURM_ARRAY_TASK_MAX"; '
    'echo "$DANLU_ARRAY_INDEX of $DANLU_ARRAY_SIZE"; sleep 0.2; test "$DANLU_ARRAY_INDEX" -ne 4'
)


@pytest.fixture
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(
        prefix="danlu-arrays-", dir="/tmp"
    ) as folder:  # every user may pass it, as jobs need it
        outer = Path(folder)
        outer.chmod(0o711)
        shared = outer / "shared"
        shared.mkdir()
        shared.chmod(0o777)
        server = Server(outer / "home")
        server.start()
        try:
            yield server
        finally:
            server.close()


def elements(server: Server, array: str) -> list[Job]:
    with server.client() as client:
        found, _ = listed(client, "jobs.list", JobsQuery(array=array), 0)
    return sorted(found, key=lambda job: job.array.index)


def test_a_chain_of_real_jobs(server: Server) -> None:
    held = server.submit("sleep", "0.2", name="prepare", hold=True)
    first = server.submit(
        "sh", "-c", SCRIPT, name="many", after=["prepare"], array={"indexes": f"0-{ELEMENTS - 1}", "parallel": 2}
    )
    last = server.submit("true", name="last", after=["many"])
    lost = server.submit("true", name="mend", after=["many:failed"])
    server.kill()
    server.start()
    with server.client() as client:
        assert client.call("jobs.get", {"job": held.id}).held
        client.call("jobs.release", {"job": "prepare"})
        state = client.call("arrays.get", {"array": "many"})
        while state.live:
            state = client.call("arrays.wait", {"array": "many"}, query=TimeoutQuery(timeout_s=TIMEOUT_S / 2))
    assert state.counts == {"succeeded": ELEMENTS - 1, "failed": 1}
    assert state.unsuccessful == ("many-4",)
    found = elements(server, "many")
    assert found[0].id == first.id
    prepared = server.job(held.id).ended_at or 0
    for job in found:
        index = job.array.index if job.array is not None else None
        server.wait(job.id)
        assert server.lines(job.id, 1) == [f"{index} of {ELEMENTS}, 0 to {ELEMENTS - 1}", f"{index} of {ELEMENTS}"]
        assert (job.started_at or 0) >= prepared
    spans = sorted((at, step) for job in found for at, step in ((job.started_at or 0, 1), (job.ended_at or 0, -1)))
    going = 0
    for _, step in spans:
        going += step
        assert going <= 2
    failed = server.wait(last.id)
    assert (failed.state, failed.reason) == (JobState.FAILED, "DependencyFailed")
    assert "many" in failed.message
    assert server.wait(lost.id).state is JobState.SUCCEEDED


def test_the_name_of_an_array_at_the_terminal(server: Server, tmp_path: Path) -> None:
    ada = Person(tmp_path, {"DANLU_HOME": str(server.home)})
    ada.danlu(
        "run", "-d", "--no-code", "--cpu", "0.1", "--name", "grid", "--array", "2-4", "--hold", "--",
        "sh", "-c", "test $DANLU_ARRAY_INDEX -ne 3",
    )  # fmt: skip
    assert ada.danlu("why", "grid").startswith("grid: 3 queued and held\n  next        grid-2 waits: OnHold, for ")
    described = ada.danlu("describe", "grid")
    assert described.startswith("grid  3 queued and held\n  waits       grid-2: OnHold\n")
    assert "  elements    3: grid-INDEX with 2-4\n" in described
    assert ada.json("describe", "grid")["held"] == ada.json("why", "grid")["state"]["held"] == 3
    assert ada.danlu("logs", "grid", code=exits.USAGE) == ""
    assert "grid-INDEX with 2-4\n  danlu logs grid-2   all of them: danlu get jobs --array grid\n" in ada.said
    assert (
        ada.danlu("hold", "grid", "grid-2")
        == "array/grid is held already: 3 queued and held\njob/grid-2 is held already\n"
    )
    ada.danlu("retry", "grid", code=exits.FAILED)
    assert "nothing of grid has failed or was cancelled: 3 queued and held" in ada.said
    assert ada.danlu("release", "grid-3") == "job/grid-3 is released\n"
    server.wait(ada.json("get", "jobs", "grid-3")["id"])
    assert ada.danlu("release", "grid-3").startswith("job/grid-3 was not held: it has ended: failed: ProcessFailed")
    assert ada.danlu("release", "grid") == "array/grid is released: 2 queued, 1 failed\n"
    assert ada.danlu("attach", "grid", code=exits.FAILED) == ""
    assert "grid: 2 succeeded, 1 failed: grid-3\n" in ada.said
    assert ada.danlu("hold", "grid") == "array/grid has nothing that waits: 2 succeeded, 1 failed\n"
    assert ada.danlu("why", "grid").startswith("grid: 2 succeeded, 1 failed\n  without     grid-3\n")
    ada.danlu("retry", "grid", code=exits.FAILED)
    assert "again         grid-3\n" in ada.said
