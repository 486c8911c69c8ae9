"""The Kubernetes executor and what is lost of a cluster, or taken away by hand: told with its reason, never begun twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from danlu.domain.jobs import Reason
from danlu.domain.reports import TaskReport
from danlu.errors import ExecutorUnavailable
from danlu.executors.base import Phase
from danlu.executors.kubernetes.manifests import ROLE
from tests.factories import SECOND
from tests.pod_bench import PodBench, gang, is_over, nothing_runs, running, seen


@pytest.fixture
def bench() -> Iterator[PodBench]:
    bench = PodBench()
    yield bench
    bench.close()


def test_a_pod_deleted_by_hand_ends_its_attempt_and_all_of_it(bench: PodBench) -> None:
    attempt_id = gang(bench)
    (pod, _) = [pod for pod in bench.cluster.pods(attempt_id) if pod["metadata"]["labels"][ROLE] == "worker"]
    bench.cluster._delete("pods", pod)
    found = bench.end(attempt_id)
    assert (found.phase, found.reason) == (Phase.LOST, Reason.POD_DELETED)
    assert nothing_runs(bench, attempt_id)
    bench.again()
    assert seen(bench, attempt_id).phase is Phase.LOST


def test_a_job_deleted_by_hand_does(bench: PodBench) -> None:
    attempt_id = gang(bench)
    bench.executor.observe()
    bench.cluster._delete("jobs", bench.cluster.all("jobs")[0])
    found = bench.end(attempt_id)
    assert (found.phase, found.reason) == (Phase.LOST, Reason.POD_DELETED)
    assert nothing_runs(bench, attempt_id)


def test_a_deleted_namespace_does_and_goes_on_once_it_is_there_again(bench: PodBench) -> None:
    attempt_id = running(bench)
    bench.cluster.delete_namespace("jobs")
    with pytest.raises(ExecutorUnavailable, match="not found"):
        bench.launch(*bench.program())
    found = bench.end(attempt_id)
    assert (found.phase, found.reason) == (Phase.LOST, Reason.POD_DELETED)
    assert nothing_runs(bench, attempt_id)
    bench.executor.forget(attempt_id)
    assert bench.see(attempt_id) is None
    bench.cluster.put("namespaces", {"metadata": {"name": "jobs"}})
    assert bench.end(bench.launch(*bench.program())).phase is Phase.ENDED


def test_the_runner_is_there_again_after_its_namespace_was_made_anew(bench: PodBench) -> None:
    bench.end(bench.launch(*bench.program()))
    bench.cluster.delete_namespace("jobs")
    bench.cluster.put("namespaces", {"metadata": {"name": "jobs"}})
    assert bench.cluster.all("configmaps") == []
    bench.clock.at += 60 * SECOND
    bench.launch(*bench.program())
    (made,) = bench.cluster.all("configmaps")
    assert made["metadata"]["name"] == "danlu-runner-0"


def test_a_lost_node_is_told_after_a_while_and_not_before(bench: PodBench) -> None:
    attempt_id = running(bench)
    bench.cluster.lose_node("node-1")
    bench.wait(50)
    assert seen(bench, attempt_id).phase is Phase.RUNNING  # it may be back, and its pods with it
    bench.wait(30)
    found = seen(bench, attempt_id)
    assert (found.phase, found.reason) == (Phase.LOST, Reason.NODE_LOST)
    assert "node node-1 does not answer: Kubelet stopped posting node status." in found.message
    assert bench.executor.capacity()[0].cpu_milli == 0


def test_the_rest_of_a_gang_is_stopped_before_a_lost_node_ends_it(bench: PodBench) -> None:
    bench.cluster.objects["nodes", "", "node-1"]["status"]["allocatable"]["cpu"] = "0.5"
    bench.cluster.node("node-2")
    attempt_id = gang(bench)
    bench.cluster.lose_node("node-1")
    bench.until(lambda: is_over(bench.see(attempt_id)))
    found = seen(bench, attempt_id)
    assert (found.phase, found.reason) == (Phase.LOST, Reason.NODE_LOST)
    there = [pod for pod in bench.cluster.pods(attempt_id) if pod["spec"]["nodeName"] == "node-2"]
    assert all(pod["status"]["phase"] in ("Succeeded", "Failed") for pod in there)


def test_a_pod_that_its_node_kills_for_memory_says_so(bench: PodBench) -> None:
    attempt_id = running(bench)
    (pod,) = bench.cluster.pods(attempt_id)
    bench.lost.add(attempt_id)
    ended = {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2023-11-14T22:13:30Z"}
    bench.cluster._set(pod, "Failed", {"terminated": ended})
    found = bench.end(attempt_id)
    assert (found.phase, found.tasks[0].oom, found.tasks[0].signal) == (Phase.ENDED, True, 9)


@pytest.mark.parametrize(
    "forged",
    [
        {"exit_code": "none"},
        {"exit_code": 256},
        {"signal": []},
        {"port_taken": -1},
        {"cpu_ns": {}},
        {"peak_memory_bytes": -1},
    ],
)
def test_a_report_that_was_made_up_harms_its_own_attempt_alone(bench: PodBench, forged: dict[str, Any]) -> None:
    liar, other = running(bench, cpu=0.25), running(bench, cpu=0.25)
    said = TaskReport(events=({"event": "exited", "task": "main-0", "at": 1, **forged},))
    bench.executor._reports = lambda: {**bench.reports(), liar: {"main-0": said}}
    bench.wait(1)
    assert seen(bench, other).phase is Phase.RUNNING
    assert not is_over(bench.see(liar))  # its pod runs


def test_an_eviction_is_told(bench: PodBench) -> None:
    attempt_id = running(bench)
    (pod,) = bench.cluster.pods(attempt_id)
    bench.lost.add(attempt_id)
    pod["status"] |= {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}
    bench.cluster.put("pods", pod)
    found = bench.end(attempt_id)
    assert (found.phase, found.reason) == (Phase.LOST, Reason.EVICTED)
    assert "The node was low on resource: memory." in found.message


def test_pods_that_are_nobodys_are_ended_and_not_at_once(bench: PodBench) -> None:
    attempt_id = running(bench)
    secret = bench.cluster.all("secrets")[0]
    del bench.cluster.objects["secrets", "jobs", attempt_id]
    bench.again()
    bench.wait(20)
    assert not nothing_runs(bench, attempt_id)  # the Secret may have been made between two lists
    bench.wait(20)
    bench.until(lambda: nothing_runs(bench, attempt_id))
    assert secret["metadata"]["name"] == attempt_id


def test_pods_without_their_secret_are_there_for_a_server_that_has_just_begun(bench: PodBench) -> None:
    attempt_id = running(bench)
    del bench.cluster.objects["secrets", "jobs", attempt_id]
    bench.again()
    assert seen(bench, attempt_id).phase is Phase.STARTING  # else what they hold would be given to others
    bench.executor.forget(attempt_id)
    bench.wait(120)
    assert nothing_runs(bench, attempt_id)
    assert seen(bench, attempt_id).phase is Phase.LOST


def test_what_was_heard_of_and_is_gone_is_lost_for_a_server_that_has_just_begun(bench: PodBench) -> None:
    attempt_id = running(bench)
    bench.cluster.delete_namespace("jobs")
    bench.until(lambda: bench.cluster.pods(attempt_id) == [])
    bench.cluster.put("namespaces", {"metadata": {"name": "jobs"}})
    bench.again()
    assert seen(bench, attempt_id).phase is Phase.STARTING  # what is not seen is launched
    with pytest.raises(ExecutorUnavailable):  # a launch that was decided on before
        bench.executor.launch(bench.orders[attempt_id])
    assert bench.cluster.all("secrets") == []
    bench.wait(2)
    assert (seen(bench, attempt_id).phase, seen(bench, attempt_id).reason) == (Phase.LOST, Reason.POD_DELETED)


@pytest.mark.parametrize("last_word", [True, False])
def test_a_runner_that_was_killed_in_its_pod_is_lost_and_no_failure(bench: PodBench, last_word: bool) -> None:
    attempt_id = running(bench)
    at = bench.clock.at
    exited = {"event": "exited", "task": "main-0", "at": at, "error": "its runner was killed", "lost": True}
    events = ({"event": "started", "task": "main-0", "at": at}, exited)
    bench.executor._reports = lambda: {attempt_id: {"main-0": TaskReport(events=events)}}
    bench.wait(2)
    assert seen(bench, attempt_id).phase is Phase.RUNNING  # its pod still keeps what it had written
    if last_word:
        events = (*events, {"event": "ended", "at": at, "lost": True})
    bench.lost.add(attempt_id)
    found = bench.end(attempt_id)
    assert (found.phase, found.reason) == (Phase.LOST, Reason.RUNNER_LOST)
