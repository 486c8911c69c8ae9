"""Checkpoints that leave a pod and come back for the next attempt: runner and server, with every fault in between."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from danlu.database.engine import Transaction
from danlu.database.records import QUOTAS
from danlu.domain.actors import Actor
from danlu.domain.artifacts import OutputsReport
from danlu.domain.checkpoints import CheckpointReport
from danlu.domain.trees import address_of
from danlu.errors import StaleAttempt
from danlu.runner import sending
from danlu.runner.channel import JSON, GaveUp, Over, Refused
from danlu.runner.checkpoints import Seals
from danlu.runner.formats import KEPT, SAVED
from danlu.runner.trees import TreeError
from danlu.services import artifacts
from danlu.services import checkpoints as services
from danlu.services.context import Call
from tests.api.edge import Api
from tests.api.pods import Attempts, Pod
from tests.factories import SECOND


@pytest.fixture
def attempts(api: Api, tmp_path: Path) -> Attempts:
    return Attempts(api, tmp_path / "pods", "main-0")


@pytest.fixture
def gang(api: Api, tmp_path: Path) -> Attempts:
    return Attempts(api, tmp_path / "pods", "chief-0", "ps-0", "worker-0")


def saved(pod: Pod, name: str, data: bytes, at_s: int = 0) -> None:
    """A program saves, and the runner proves it."""
    pod.save(name, data)
    if at_s:
        os.utime(pod.checkpoints / name, ns=(at_s * SECOND,) * 2)
    pod.prove()


def newest(pod: Pod) -> str:
    return Path(Seals(str(pod.checkpoints)).newest() or "").name


def test_what_was_proven_comes_back(attempts: Attempts) -> None:
    pod = attempts.pod("main-0")
    pod.restore()
    for step in (8, 9, 10):
        saved(pod, f"step-{step}", b"%d" % step * 1000, 1000 + step)
        pod.carrier.step()
    pod.save("step-11", b"half")  # not proven
    pod.carrier.step()
    attempts.next()
    other = attempts.pod("main-0")
    other.restore()
    assert other.files() == {"step-10": b"10" * 1000}
    assert (other.checkpoints / "step-10").stat().st_mtime_ns == 1010 * SECOND
    assert Path(Seals(str(other.checkpoints)).settle("a").newest or "").name == "step-10"


def test_what_came_back_is_not_sent_again(attempts: Attempts) -> None:
    pod = attempts.pod("main-0")
    saved(pod, "last.pt", b"1" * 10)
    pod.carrier.step()
    attempts.next()
    other = attempts.pod("main-0")
    other.carrier.step()
    other.restore()
    other.carrier.step()
    other.carrier.finish()
    assert not any(asked.startswith("PUT /checkpoints") for asked in other.wire.asked)
    assert [one.attempt_id for one in attempts.kept()] == [pod.attempt_id]


def test_of_those_that_wait_only_the_newest_is_sent(attempts: Attempts) -> None:
    pod = attempts.pod("main-0")
    for step in range(5):
        saved(pod, f"step-{step}", b"%d" % step)
    saved(pod, "best", b"best")
    pod.carrier.step()
    assert sorted(one.name for one in attempts.kept()) == ["best", "step-4"]


def test_the_newest_three_are_kept_and_those_before_this_attempt_until_it_has_ended(attempts: Attempts) -> None:
    for first in (0, 10):
        pod = attempts.pod("main-0")
        for step in range(first, first + 5):
            saved(pod, f"step-{step}", b"%d" % step)
            pod.carrier.step()
        if not first:
            attempts.next()
    assert sorted(one.name for one in attempts.kept()) == [
        f"step-{n}" for n in (10, 11, 12, 13, 14, 2, 3, 4) if n != 10 and n != 11
    ]


def test_a_name_that_is_written_again_is_sent_again_later_or_when_time_is_short(attempts: Attempts) -> None:
    pod = attempts.pod("main-0")
    saved(pod, "last.pt", b"1", 1001)
    pod.carrier.step()
    saved(pod, "last.pt", b"22", 1002)
    pod.carrier.step()
    assert [one.size_bytes for one in attempts.kept()] == [1]
    (Path(pod.folder) / "notice").mkdir()
    (Path(pod.folder) / "notice" / "preemption.json").write_text("{}")
    pod.carrier.step()
    assert [one.size_bytes for one in attempts.kept()] == [2]


def test_in_a_pod_a_checkpoint_is_kept_once_it_was_delivered(attempts: Attempts) -> None:
    pod = attempts.pod("main-0")
    saved(pod, "step-1", b"1")
    seals = Seals(str(pod.checkpoints), pod.folder)
    assert Seals(str(pod.checkpoints)).saved_since(0)
    assert not seals.saved_since(0), "it would be over before it has left the pod"
    pod.carrier.step()
    assert seals.saved_since(0)


def told(pod: Pod) -> str | None:
    """What is told as saved, once the runner has said what it has sealed."""
    seals = Seals(str(pod.checkpoints))
    seals.tell(seals.newest(), f"{pod.folder}/{SAVED}", str)
    pod.carrier.step()
    path = Path(pod.folder, KEPT)
    return json.loads(path.read_text())["name"] if path.exists() else None


def test_what_is_told_as_saved_is_what_the_server_has(attempts: Attempts) -> None:
    """A program that saves faster than it can be sent, and one of which the server does not take the last one."""
    pod = attempts.pod("main-0")
    for step in range(3):
        saved(pod, f"step-{step}", b"%d" % step, 1000 + step)
    sent: list[str] = []

    def goes_on(_method: str, path: str) -> None:
        if path == "/checkpoints/step-2":
            saved(pod, "step-3", b"3", 1003)
            (pod.checkpoints / "step-2").unlink()
        if path == "/checkpoints/step-3":
            sent.append(path)
            raise Refused(413, "TooLarge", "no")

    pod.wire.fault = goes_on
    assert told(pod) == "step-2"
    assert sent
    pod.carrier.finish()
    assert [one.name for one in attempts.kept()] == ["step-2"]
    assert told(pod) == "step-2"


def test_what_was_brought_is_told_as_saved(attempts: Attempts) -> None:
    pod = attempts.pod("main-0")
    saved(pod, "step-1", b"1", 1001)
    pod.carrier.step()
    attempts.next()
    other = attempts.pod("main-0")
    assert told(other) is None
    other.restore()
    assert told(other) == "step-1"


# TensorFlow


def tensorflow(pod: Pod, step: int) -> None:
    pod.save(f"model.ckpt-{step}.data-00000-of-00001", b"d%d" % step * 99)
    pod.save(f"model.ckpt-{step}.index", b"i%d" % step)


def test_what_the_parameter_server_wrote_comes_to_all(gang: Attempts) -> None:
    """Its variables are saved on its own machine, and the list of checkpoints is the chief's."""
    chief, server = gang.pod("chief-0"), gang.pod("ps-0")
    for step in (100, 200):
        tensorflow(server, step)
        chief.save(f"model.ckpt-{step}.meta", b"graph")
        chief.save("checkpoint", b'model_checkpoint_path: "/danlu/checkpoints/model.ckpt-%d"\n' % step)
        for pod in (server, chief):
            pod.prove()
            pod.carrier.step()
    gang.next()
    for task in ("chief-0", "ps-0", "worker-0"):
        pod = gang.pod(task)
        pod.restore()
        assert pod.files() == {
            "checkpoint": b'model_checkpoint_path: "model.ckpt-200"\nall_model_checkpoint_paths: "model.ckpt-200"\n',
            "model.ckpt-200.data-00000-of-00001": b"d200" * 99, "model.ckpt-200.index": b"i200",
            "model.ckpt-200.meta": b"graph",
        }  # fmt: skip
        assert "model.ckpt-200" in Seals(str(pod.checkpoints)).whole()
        pod.carrier.finish()
        assert not any("PUT /checkpoints" in asked for asked in pod.wire.asked)


def test_the_list_names_what_came_back_and_not_what_was_lost(gang: Attempts) -> None:
    chief, server = gang.pod("chief-0"), gang.pod("ps-0")
    tensorflow(server, 100)
    server.prove()
    server.carrier.step()
    tensorflow(server, 200)  # its node is lost before this one is sent
    chief.save("checkpoint", b'model_checkpoint_path: "model.ckpt-200"\n')
    chief.carrier.step()
    gang.next()
    pod = gang.pod("chief-0")
    pod.restore()
    assert b'model_checkpoint_path: "model.ckpt-100"' in pod.files()["checkpoint"]


def test_parts_of_one_checkpoint_come_together_and_a_half_one_does_not(api: Api, tmp_path: Path) -> None:
    gang = Attempts(api, tmp_path / "pods", "worker-0", "worker-1")
    pods = [gang.pod("worker-0"), gang.pod("worker-1")]
    for step in (1, 2):
        for rank, pod in enumerate(pods):
            pod.save(f"step-{step}/shard-{rank}", b"%d of %d" % (rank, step))
            pod.prove()
            if (step, rank) != (2, 1):  # is lost before it is sent
                pod.carrier.step()
    gang.next()
    for task in gang.names:
        pod = gang.pod(task)
        pod.restore()
        assert pod.files() == {"step-1/shard-0": b"0 of 1", "step-1/shard-1": b"1 of 1"}


def test_each_task_gets_its_own_of_what_has_one_name(api: Api, tmp_path: Path) -> None:
    gang = Attempts(api, tmp_path / "pods", "worker-0", "worker-1")
    for task in gang.names:
        pod = gang.pod(task)
        saved(pod, "last.pt", task.encode())
        pod.carrier.finish()
    gang.next("worker-0", "worker-1", "worker-2")
    for task, found in (("worker-0", b"worker-0"), ("worker-1", b"worker-1"), ("worker-2", b"worker-0")):
        pod = gang.pod(task)
        pod.restore()
        assert pod.files() == {"last.pt": found}


# faults


def large() -> bytes:
    return os.urandom(3 * sending.PIECE_BYTES // 2)


class Cut:
    """Lets so many requests of a kind through; every one after them fails, until it is mended."""

    def __init__(self, what: str, after: int) -> None:
        self.what, self.left, self.mended = what, after, False

    def __call__(self, method: str, path: str) -> None:
        if f"{method} {path}".startswith(self.what) and not self.mended:
            self.left -= 1
            if self.left < 0:
                raise GaveUp("the connection is lost")


def test_an_upload_that_was_cut_goes_on_where_it_ended(attempts: Attempts) -> None:
    data = large()
    pod = attempts.pod("main-0", fault=(cut := Cut("PUT /blobs", 1)))
    saved(pod, "step-1", data)
    with pytest.raises(GaveUp):
        pod.carrier.step()
    assert attempts.kept() == []
    cut.mended = True
    pod.wire.asked.clear()
    pod.carrier.step()
    assert [one.name for one in attempts.kept()] == ["step-1"]
    assert sum(asked.startswith("PUT /blobs") for asked in pod.wire.asked) == 1, "the first piece was there"
    assert not (pod.checkpoints / ".danlu" / "sending").exists()


def test_a_piece_whose_answer_was_lost_is_there_once(attempts: Attempts) -> None:
    data = large()
    pod = attempts.pod("main-0")
    saved(pod, "step-1", data)
    real, lost = pod.wire.call, []

    def call(method: str, path: str, *arguments: Any, **more: Any) -> Any:
        answer = real(method, path, *arguments, **more)
        if method == "PUT" and path.startswith("/blobs") and len(lost) < 3:
            lost.append(path)
            return real(method, path, *arguments, **more)  # as the channel repeats what it has no answer to
        return answer

    pod.wire.call = call  # type: ignore[method-assign]
    pod.carrier.step()
    attempts.next()
    other = attempts.pod("main-0")
    other.restore()
    assert other.files() == {"step-1": data}


def test_a_runner_killed_while_it_sends_leaves_the_one_before(attempts: Attempts) -> None:
    pod = attempts.pod("main-0")
    saved(pod, "step-1", b"1")
    pod.carrier.step()
    saved(pod, "step-2", large())
    pod.wire.fault = Cut("PUT /blobs", 1)
    with pytest.raises(GaveUp):  # what follows does not happen any more
        pod.carrier.step()
    attempts.next()
    other = attempts.pod("main-0")
    other.restore()
    assert other.files() == {"step-1": b"1"}


def test_its_program_may_remove_it_meanwhile(attempts: Attempts) -> None:
    pod = attempts.pod("main-0")
    saved(pod, "step-1", data := large())
    pod.wire.fault = lambda method, path: (pod.checkpoints / "step-1").unlink(missing_ok=True)
    pod.carrier.step()
    attempts.next()
    other = attempts.pod("main-0")
    other.restore()
    assert other.files() == {"step-1": data}


@pytest.mark.parametrize("size", [100, 3 * sending.PIECE_BYTES // 2])
@pytest.mark.parametrize("when", ["POST /blobs/missing", "PUT /blobs", "POST /blobs"])
def test_one_that_is_written_into_meanwhile_is_not_told_of(attempts: Attempts, size: int, when: str) -> None:
    pod = attempts.pod("main-0")
    saved(pod, "last.pt", os.urandom(size), 1000)
    changed: list[str] = []

    def change(method: str, path: str) -> None:
        if f"{method} {path}".startswith(when) and not changed:
            changed.append(path)
            with (pod.checkpoints / "last.pt").open("r+b") as file:
                file.write(b"changed in place")

    pod.wire.fault = change
    pod.carrier.step()
    assert attempts.kept() == [] or not changed
    pod.prove()
    pod.carrier.finish()
    assert [one.name for one in attempts.kept()] == ["last.pt"]


def test_a_stale_attempt_keeps_nothing(attempts: Attempts) -> None:
    pod = attempts.pod("main-0")
    saved(pod, "step-1", b"1")
    attempts.next()
    for work in (pod.carrier.step, pod.carrier.finish, pod.restore):
        with pytest.raises(Over, match="is over"):
            work()
    assert attempts.kept() == []


@pytest.mark.parametrize("age_s", [1, -1])
def test_a_report_that_comes_late_does_not_take_the_place_of_a_newer_one(attempts: Attempts, age_s: int) -> None:
    """A server stood still with the first, and the runner has gone on; what is newer may have an older time."""
    pod = attempts.pod("main-0")
    saved(pod, "last.pt", b"first", 1000)
    pod.carrier.step()
    late = pod.wire.sent[-1]
    saved(pod, "last.pt", b"the second", 1000 + age_s)
    pod.carrier.finish()
    (kept,) = attempts.kept()
    assert kept.size_bytes == len(b"the second")
    pod.wire.call(*late, content=JSON)
    assert attempts.kept() == [kept]


def test_an_attempt_whose_place_is_taken_while_it_asks_keeps_nothing(attempts: Attempts) -> None:
    """It was let in while it was the job's, and is not any more when it comes to be stored."""
    api, old = attempts.api, attempts.attempt_id
    call = Call(api.platform, Actor(id=old, name=old, project="default", attempt_id=old), "default")
    tree = address_of(api.node)
    attempts.next()
    with pytest.raises(StaleAttempt):
        services.register(call, old, "step-1", CheckpointReport(task="main-0", tree=tree, at=1))
    with pytest.raises(StaleAttempt):
        artifacts.report(call, old, "main-0", OutputsReport(tree=tree))
    assert attempts.kept() == []


def test_what_was_computed_is_kept_whatever_the_limit(api: Api, attempts: Attempts) -> None:
    def work(tx: Transaction) -> None:
        quota = QUOTAS.require(tx, "default")
        QUOTAS.put(tx, quota, quota.evolved(now=quota.updated_at, limit={"storage": 1}))

    api.database.write(work)
    pod = attempts.pod("main-0")
    saved(pod, "step-1", large())
    pod.carrier.finish()
    assert [one.name for one in attempts.kept()] == ["step-1"]


def test_a_download_that_breaks_off_goes_on(attempts: Attempts) -> None:
    pod = attempts.pod("main-0")
    saved(pod, "step-1", data := os.urandom(300_000))
    pod.carrier.step()
    attempts.next()
    other = attempts.pod("main-0", torn_at=100_000)
    other.restore()
    assert other.files() == {"step-1": data}


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Lets no file become larger: writing more fails as on a full disk."""
    before, heard = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, heard)


def test_a_full_disk_is_told_and_nothing_half_is_there(attempts: Attempts) -> None:
    pod = attempts.pod("main-0")
    saved(pod, "step-1", os.urandom(3_000_000))
    pod.carrier.step()
    attempts.next()
    other = attempts.pod("main-0")
    with files_of_at_most(1_000_000), pytest.raises(TreeError, match=r"3000000 bytes.*File too large"):
        other.restore()
    assert other.files() == {}
    assert list((other.checkpoints / ".danlu").iterdir()) == []
