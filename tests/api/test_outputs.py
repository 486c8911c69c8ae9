"""What tasks in pods leave becomes one artifact of their attempt: sent by their runners, put together by the server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from danlu.blobs.code import Code
from danlu.controllers.collection import CollectionController
from danlu.controllers.tasks import Tasks
from danlu.database import stored
from danlu.database.engine import Transaction
from danlu.database.records import ARTIFACTS, ATTEMPTS, CHECKPOINTS, OUTPUTS
from danlu.domain.artifacts import Artifact
from danlu.domain.jobs import AttemptState, Reason
from danlu.domain.trees import address_of, frames
from danlu.runner.channel import GaveUp, Over, Refused
from danlu.services.stored import MAX_UNREFERENCED_BYTES
from tests.api.edge import FILE, Api
from tests.api.pods import Attempts
from tests.factories import NOW, write_files


class Nothing:
    """An executor that has no folder of an attempt."""

    def pending(self, attempt_id: str, *, max_bytes: int) -> Iterator[Any]:
        return iter(())

    def outputs(self, attempt_id: str) -> Path | None:
        return None

    def checkpoint_bytes(self, owner: str) -> int:
        return 0

    def forget(self, attempt_id: str) -> None: ...


@pytest.fixture
def gang(api: Api, tmp_path: Path) -> Attempts:
    api.database.write(lambda tx: ARTIFACTS.remove(tx, ARTIFACTS.require(tx, api.ids["artifact"])))
    return Attempts(api, tmp_path / "pods", "chief-0", "worker-0")


def collected(gang: Attempts, reason: Reason = Reason.COMPLETED) -> Artifact | None:
    """The attempt ends, and what it has left is collected; returns its artifact."""
    api, nothing = gang.api, Nothing()

    def end(tx: Transaction) -> None:
        attempt = ATTEMPTS.require(tx, gang.attempt_id)
        ATTEMPTS.put(tx, attempt, attempt.moved(AttemptState.ENDED, now=NOW, reason=reason, ended_at=NOW))

    api.database.write(end)
    parts: Any = nothing
    platform = api.platform
    CollectionController(
        api.database,
        parts,
        parts,
        platform.blobs,
        platform.streams,
        platform.clock,
        platform.hub,
        Tasks(lambda work: work()),
    ).step()
    assert api.database.read(lambda tx: ATTEMPTS.require(tx, gang.attempt_id)).collected
    assert api.database.read(lambda tx: OUTPUTS.find(tx, limit=10)) == []
    found = api.database.read(lambda tx: ARTIFACTS.find(tx, attempt_id=gang.attempt_id, limit=10))
    return found[0] if found else None


def content(gang: Attempts, artifact: Artifact, folder: Path) -> dict[str, str]:
    Code(gang.api.platform.blobs).copy("default", artifact.tree, folder)
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_nothing_that_a_task_left_is_lost(gang: Attempts, tmp_path: Path) -> None:
    for task, files in (
        ("worker-0", {"model.pt": "worker", "logs/worker": "w", "same": "s"}),
        ("chief-0", {"model.pt": "chief", "logs/chief": "c", "same": "s"}),
    ):
        pod = gang.pod(task)
        write_files(pod.outputs, dict(files))
        pod.carrier.finish()
    artifact = collected(gang)
    assert artifact is not None
    assert content(gang, artifact, tmp_path / "out") == {
        "logs/chief": "c", "logs/worker": "w", "model.pt": "chief", "model.pt.worker-0": "worker", "same": "s",
    }  # fmt: skip
    assert (artifact.files, artifact.size_bytes, artifact.partial, artifact.skipped) == (5, 14, False, ())


def test_what_could_not_be_kept_is_told(gang: Attempts) -> None:
    pod = gang.pod("chief-0")
    write_files(pod.outputs, {"a": "1"})
    (pod.outputs / "out").symlink_to("/etc")
    os.mkfifo(pod.outputs / "pipe")
    pod.carrier.finish()
    artifact = collected(gang)
    assert artifact is not None
    assert artifact.partial
    assert artifact.skipped == (
        "chief-0/out: this link leaves the folder: /etc", "chief-0/pipe: a socket, pipe or device is left out",
        "worker-0: nothing of it came",
    )  # fmt: skip


def test_an_attempt_that_failed_leaves_a_part(gang: Attempts) -> None:
    for task in gang.names:
        pod = gang.pod(task)
        write_files(pod.outputs, {"a": task})
        pod.carrier.finish()
    artifact = collected(gang, Reason.PROCESS_FAILED)
    assert artifact is not None
    assert (artifact.partial, artifact.skipped) == (True, ())


def test_where_nothing_was_left_there_is_no_artifact(gang: Attempts) -> None:
    for task in gang.names:
        pod = gang.pod(task)
        if task == "worker-0":
            pod.outputs.rmdir()
        pod.carrier.finish()
    assert collected(gang) is None


def test_where_no_runner_was_there_is_no_artifact(gang: Attempts) -> None:
    assert collected(gang, Reason.LAUNCH_REJECTED) is None


def test_large_files_and_many_come_whole(gang: Attempts, tmp_path: Path) -> None:
    pod = gang.pod("chief-0")
    files = {f"many/{n}": str(n) for n in range(1500)} | {"large": "x" * 9_000_000, "empty": ""}
    write_files(pod.outputs, dict(files))
    pod.carrier.finish()
    gang.pod("worker-0").carrier.finish()
    artifact = collected(gang)
    assert artifact is not None
    assert content(gang, artifact, tmp_path / "out") == dict(sorted(files.items()))


def test_what_was_told_twice_is_there_once(gang: Attempts) -> None:
    pod = gang.pod("chief-0")
    write_files(pod.outputs, {"a": "1"})
    pod.carrier.finish()
    write_files(pod.outputs, {"b": "1"})
    pod.carrier.finish()
    artifact = collected(gang)
    assert artifact is not None
    assert artifact.files == 2


def test_a_collected_attempt_leaves_nothing_more(gang: Attempts) -> None:
    pod = gang.pod("chief-0")
    write_files(pod.outputs, {"a": "1"})
    collected(gang)
    with pytest.raises(Over, match="is over"):
        pod.carrier.finish()


def test_checkpoints_that_newer_ones_replaced_are_given_up_then(gang: Attempts) -> None:
    for _ in range(2):
        pod = gang.pod("chief-0")
        pod.restore()
        pod.save("last.pt", os.urandom(10))
        pod.prove()
        pod.carrier.step()
        last = gang.attempt_id
        if gang.number == 1:
            gang.next()
    assert len(gang.kept()) == 2
    collected(gang)
    assert [one.attempt_id for one in gang.kept()] == [last]


# what is refused


def unreferenced(gang: Attempts, more: int = 0) -> int:
    """Returns how much the attempt has sent that is in nothing it has told of, once that is ``more``."""
    own = gang.attempt_id
    return gang.api.database.write(lambda tx: stored.add_unreferenced(tx, "default", own, more, NOW))


def test_what_an_attempt_sends_and_never_tells_of_is_bounded(gang: Attempts) -> None:
    pod, data = gang.pod("chief-0"), os.urandom(5000)
    unreferenced(gang, MAX_UNREFERENCED_BYTES - 4000)
    pack, whole = b"".join(frames([data])), f"/blobs/{address_of(data)}"
    for _ in range(2):
        with pytest.raises(Refused, match="is the most"):
            pod.wire.call("POST", "/blobs", pack)
        with pytest.raises(Refused, match="is the most"):
            pod.wire.call("PUT", whole, data[:10], query={"offset": 0, "size_bytes": len(data)})
    pod.save("step-1", b"x" * 3000)
    pod.prove()
    pod.carrier.step()
    assert [one.name for one in gang.kept()] == ["step-1"]
    assert unreferenced(gang) <= MAX_UNREFERENCED_BYTES - 4000, "what it told of counts no more"
    pod.wire.call("POST", "/blobs", pack)
    assert unreferenced(gang) > MAX_UNREFERENCED_BYTES - 1000
    pod.carrier.finish()
    collected(gang)
    assert unreferenced(gang) == 0


def test_what_is_sent_in_pieces_counts_with_its_first_one_until_it_is_told_of(gang: Attempts) -> None:
    pod, data = gang.pod("chief-0"), os.urandom(3 << 20)
    address = f"/blobs/{address_of(data)}"
    for offset in (0, 1 << 20):
        pod.wire.call(
            "PUT", address, data[offset : offset + (1 << 20)], query={"offset": offset, "size_bytes": len(data)}
        )
    assert unreferenced(gang) == len(data)
    (pod.outputs / "data").write_bytes(data)
    pod.carrier.finish()
    assert unreferenced(gang) == 0


def test_what_is_not_all_there_is_not_believed(gang: Attempts) -> None:
    gone = address_of(b"gone")
    for operation, body in (
        ("artifacts.report", {"tree": gone}), ("checkpoints.register", {"task": "chief-0", "tree": gone, "at": 1}),
    ):  # fmt: skip
        answer = gang.api.call(operation, actor="attempt", data=body, task="chief-0", name="step-1")
        assert (answer.status, answer.json()["code"]) == (422, "InvalidSpec"), answer.content
        assert "is not complete" in answer.json()["detail"]
    assert gang.api.database.read(lambda tx: (OUTPUTS.find(tx, limit=9), CHECKPOINTS.find(tx, limit=9))) == ([], [])


@pytest.mark.parametrize(
    ("operation", "ids", "body"),
    [
        ("artifacts.report", {"task": "ps-7"}, {}),
        ("checkpoints.register", {"name": "a"}, {"task": "ps-7", "at": 1}),
        ("checkpoints.register", {"name": "x" * 256}, {"task": "chief-0", "at": 1}),
    ],
)
def test_what_is_not_of_the_attempt_is_refused(gang: Attempts, operation: str, ids: dict[str, str], body: Any) -> None:
    tree = address_of(gang.api.node)
    answer = gang.api.call(operation, actor="attempt", data={"tree": tree, **body}, **ids)
    assert answer.status == 400, answer.content


@pytest.mark.parametrize(
    "operation", ["results.missing", "results.pack", "results.received", "results.append", "results.get",
                  "artifacts.report", "checkpoints.register", "checkpoints.restorable"],
)  # fmt: skip
def test_an_attempt_writes_and_reads_its_own_alone(gang: Attempts, operation: str) -> None:
    body: Any = {
        "results.missing": {}, "results.pack": b"".join(frames([b"x"])), "results.append": FILE,
        "artifacts.report": {"tree": address_of(gang.api.node)},
        "checkpoints.register": {"task": "main-0", "tree": address_of(gang.api.node), "at": 1},
    }.get(operation)  # fmt: skip
    other = f"{gang.api.ids['ended']}-1"
    answer = gang.api.call(operation, actor="attempt", data=body, attempt=other)
    assert (answer.status, answer.json()["code"]) == (403, "NotAllowed")


def test_a_blob_is_read_from_a_byte_on(gang: Attempts) -> None:
    for offset in (0, 5, len(FILE)):
        answer = gang.api.call("results.get", actor="attempt", query=f"?offset={offset}")
        assert (answer.status, answer.content) == (200, FILE[offset:])
    assert gang.api.call("results.get", actor="attempt", query=f"?offset={len(FILE) + 1}").status == 400


def test_a_server_that_cannot_be_reached_is_told_of(gang: Attempts) -> None:
    def lost(method: str, path: str) -> None:
        raise GaveUp(f"{method} {path}")

    pod = gang.pod("chief-0", fault=lost)
    write_files(pod.outputs, {"a": "1"})
    with pytest.raises(GaveUp):
        pod.carrier.finish()
