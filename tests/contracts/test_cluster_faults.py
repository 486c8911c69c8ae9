"""The Kubernetes executor and a cluster that fails: what is lost is told with its reason, nothing runs twice, all goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from danlu.domain.jobs import Reason
from danlu.errors import ExecutorUnavailable, LaunchRejected
from danlu.executors.base import LaunchOrder, Phase
from tests.cluster import Answer, Container
from tests.factories import SECOND
from tests.pod_bench import PodBench, gang, is_over, nothing_runs, running, seen


@pytest.fixture
def bench() -> Iterator[PodBench]:
    bench = PodBench()
    yield bench
    bench.close()


def test_a_job_of_one_task_costs_two_writes(bench: PodBench) -> None:
    bench.end(bench.launch(*bench.program()))
    bench.cluster.writes.clear()
    bench.end(bench.launch(*bench.program()))
    assert bench.cluster.writes == ["POST secrets", "POST jobs"]


def test_a_gang_costs_a_write_for_each_role_and_two(bench: PodBench) -> None:
    bench.end(bench.launch(*bench.program()))
    bench.cluster.writes.clear()
    gang(bench)
    assert bench.cluster.writes == ["POST secrets", "POST services", "POST jobs", "POST jobs"]


def test_nothing_changes_while_the_api_is_down(bench: PodBench) -> None:
    attempt_id = running(bench)
    bench.cluster.down = True
    for _ in range(60):
        bench.clock.at += SECOND
        with pytest.raises(ExecutorUnavailable, match="does not answer"):
            bench.executor.observe()
    with pytest.raises(ExecutorUnavailable):
        bench.launch(*bench.program())
    with pytest.raises(ExecutorUnavailable):
        bench.executor.stop(attempt_id, grace_s=1)
    bench.cluster.down = False
    assert seen(bench, attempt_id).phase is Phase.RUNNING
    bench.executor.stop(attempt_id, grace_s=1)
    assert bench.end(attempt_id).stopped


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_passes_is_asked_again(bench: PodBench, status: int) -> None:
    bench.cluster.faults = [Answer(status, "TooManyRequests", "later", Retry_After="1")] * 3
    before = bench.clock.at
    bench.end(bench.launch(*bench.program()))
    assert bench.clock.at - before >= 3 * SECOND


def test_expired_credentials_are_read_again_and_told(bench: PodBench) -> None:
    attempt_id = running(bench)
    bench.cluster.faults = [Answer(401, "Unauthorized", "Unauthorized")]
    bench.wait(1)
    assert seen(bench, attempt_id).phase is Phase.RUNNING
    bench.cluster.faults = [Answer(401, "Unauthorized", "the token has expired")] * 2
    bench.clock.at += 2 * SECOND
    with pytest.raises(ExecutorUnavailable, match=r"credentials \(401\): the token has expired"):
        bench.executor.observe()
    bench.wait(1)
    assert seen(bench, attempt_id).phase is Phase.RUNNING


def test_a_list_that_has_grown_too_old_is_read_again(bench: PodBench) -> None:
    ids = {running(bench, cpu=0.1) for _ in range(3)}
    bench.cluster.page = 1
    bench.clock.at += 2 * SECOND
    bench.cluster.faults = [Answer(410, "Expired", "the provided continue parameter is too old")]
    assert {one.attempt_id for one in bench.executor.observe()} == ids


@pytest.mark.parametrize("status", [403, 422])
def test_what_the_api_refuses_is_told_in_its_words_and_nothing_is_left(bench: PodBench, status: int) -> None:
    order = bench.order(*bench.program())
    bench.executor._runner_at = bench.executor._monotonic()
    bench.cluster.faults = [Answer(status, "Invalid", "spec.template: no such runtime class")]
    with pytest.raises(LaunchRejected, match="no such runtime class"):
        bench.executor.launch(order)
    assert bench.cluster.all("secrets") == []
    assert bench.see(order.attempt.id) is None


def test_a_quota_of_objects_may_have_room_later(bench: PodBench) -> None:
    order = bench.order(*bench.program())
    bench.executor._runner_at = bench.executor._monotonic()
    bench.cluster.faults = [
        Answer(403, "Forbidden", "exceeded quota: objects, requested: secrets=1, used: 5, limited: 5")
    ]
    with pytest.raises(ExecutorUnavailable, match="exceeded quota"):
        bench.executor.launch(order)
    bench.executor.launch(order)
    assert bench.end(order.attempt.id).phase is Phase.ENDED


def cut_short(bench: PodBench, after: int, **program: Any) -> LaunchOrder:
    """Launches a gang of two roles, and its API does not answer any more after so many writes; then by another server."""
    words = bench.program(**program)
    order = bench.order("unused", roles={"a": {"command": words}, "b": {"command": words}}, framework="none", cpu=0.25)
    bench.executor._runner_at = bench.executor._monotonic()
    handle, calls = bench.cluster.handle, 0

    def cut(method: str, url: str, body: object) -> object:
        nonlocal calls
        calls += method == "POST"
        if calls > after:
            raise Answer(500, "InternalError", "etcd is gone")
        return handle(method, url, body)

    bench.cluster.handle = cut  # type: ignore[method-assign, assignment]
    with pytest.raises(ExecutorUnavailable):
        bench.executor.launch(order)
    bench.cluster.handle = handle  # type: ignore[method-assign]
    bench.again()
    return order


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_launch_that_was_cut_short_is_gone_on_with(bench: PodBench, after: int) -> None:
    order = cut_short(bench, after, lines=("once",))
    told = seen(bench, order.attempt.id)
    assert (told.phase, told.unfinished) == (Phase.STARTING, True)
    bench.executor.launch(order)
    found = bench.end(order.attempt.id)
    assert [task.exit_code for task in found.tasks] == [0, 0]
    assert bench.runners.begun == [order.attempt.id]


def test_a_launch_that_was_cut_short_is_there_until_it_is_stopped(bench: PodBench) -> None:
    order = cut_short(bench, 3, hold=True)
    bench.wait(2)
    assert seen(bench, order.attempt.id).unfinished
    assert not nothing_runs(bench, order.attempt.id)  # the pod of the first role
    bench.executor.stop(order.attempt.id, grace_s=1)
    assert seen(bench, order.attempt.id).phase is not Phase.ENDED
    bench.end(order.attempt.id)
    assert nothing_runs(bench, order.attempt.id)


def test_what_was_stopped_is_not_launched_again(bench: PodBench) -> None:
    order = bench.order(*bench.program(hold=True))
    bench.executor.launch(order)
    bench.executor.stop(order.attempt.id, grace_s=1)
    bench.end(order.attempt.id)
    bench.again()
    bench.executor.launch(order)
    bench.wait(5)
    assert nothing_runs(bench, order.attempt.id)
    assert seen(bench, order.attempt.id).stopped


# the watch


CUTS = [None, Answer(410, "Expired", "too old resource version"), Answer(500, "InternalError", "x")]


@pytest.mark.parametrize("fault", CUTS)
def test_a_watch_that_is_cut_is_begun_again_and_only_says_when_to_look(bench: PodBench, fault: Answer | None) -> None:
    stopping = threading.Event()
    bench.executor.observe()
    attempt_id = bench.launch(*bench.program())
    bench.cluster.faults = [] if fault is None else [fault]
    thread = threading.Thread(target=bench.executor.cluster.watch, args=(stopping, stopping.set))
    thread.start()
    for _ in range(200):
        bench.clock.at += SECOND // 10
        bench.cluster.tick()
        if stopping.wait(0.1):
            break
    thread.join(20)
    assert stopping.is_set()
    assert not thread.is_alive()
    assert bench.end(attempt_id).phase is Phase.ENDED


# why it does not run yet


def test_an_image_that_cannot_be_pulled_is_told_at_once_and_goes_on_when_it_can(bench: PodBench) -> None:
    attempt_id = bench.launch(*bench.program(), image="registry.test/gone:1")
    bench.until(lambda: seen(bench, attempt_id).reason is Reason.IMAGE_PULL_FAILED)
    assert "registry.test/gone:1 cannot be pulled on node-1" in seen(bench, attempt_id).message
    bench.cluster.images.add("registry.test/gone:1")
    assert bench.end(attempt_id).phase is Phase.ENDED


def test_what_fits_nowhere_is_told_with_the_numbers(bench: PodBench) -> None:
    attempt_id = bench.launch(*bench.program(), cpu=64)
    bench.until(lambda: seen(bench, attempt_id).reason is Reason.UNSCHEDULABLE)
    assert "0/1 nodes are available: 1 Insufficient cpu." in seen(bench, attempt_id).message


@pytest.mark.parametrize("product", ["NVIDIA-H100-80GB-HBM3", ""])
def test_a_kind_of_gpu_that_nobody_has_named_is_asked_for_by_the_nodes_product(bench: PodBench, product: str) -> None:
    bench.cluster.node("node-2", gpus=1, labels={"nvidia.com/gpu.product": product} if product else {})
    (gpu,) = (gpu for node in bench.executor.capacity() for gpu in node.gpus)
    assert gpu.kind == (product.lower() or "gpu")
    attempt_id = bench.launch(*bench.program(lines=("up",), hold=True), gpu=1, gpu_kind=gpu.kind)
    bench.printed(attempt_id, "up")
    assert [pod["spec"]["nodeName"] for pod in bench.cluster.pods(attempt_id)] == ["node-2"]


def test_a_quota_or_a_webhook_that_refuses_the_pods_is_told_and_goes_on_when_it_does_not(bench: PodBench) -> None:
    bench.cluster.refuse_pods = 'pods "x" is forbidden: exceeded quota: gpus, requested: 8, used: 0, limited: 4'
    attempt_id = bench.launch(*bench.program())
    bench.until(lambda: seen(bench, attempt_id).reason is Reason.POD_REFUSED)
    assert "exceeded quota: gpus, requested: 8" in seen(bench, attempt_id).message
    bench.cluster.refuse_pods = ""
    assert bench.end(attempt_id).phase is Phase.ENDED


def test_what_was_stopped_before_its_launch_is_not_begun_by_who_comes_late(bench: PodBench) -> None:
    """An old leader that stood still before it, however often the new one has said that it may be forgotten."""
    order, late = bench.order(*bench.program(hold=True)), bench._open()
    for _ in range(2):
        bench.executor.stop(order.attempt.id, grace_s=1.0)
        bench.executor.forget(order.attempt.id)
        bench.wait(15)
    late.launch(order)
    late.launch(order)
    assert (bench.executor.observe(), late.observe()) == ((), ())
    assert bench.cluster.all("jobs") == []
    late.close()
    bench.clock.at += 3600 * SECOND
    bench.wait(15)
    assert bench.cluster.all("secrets") == []


def test_a_stop_that_meets_the_launch_is_tried_again(bench: PodBench) -> None:
    order = bench.order(*bench.program(hold=True))
    bench.executor.launch(order)
    bench.again()
    bench.cluster.faults = [Answer(404, "NotFound", "it is not there yet")]
    with pytest.raises(ExecutorUnavailable, match="is being launched at this moment"):
        bench.executor.stop(order.attempt.id, grace_s=1.0)
    bench.executor.stop(order.attempt.id, grace_s=1.0)
    assert bench.end(order.attempt.id).stopped


def test_where_there_is_no_namespace_nothing_needs_to_be_withdrawn(bench: PodBench) -> None:
    bench.cluster.delete_namespace("jobs")
    bench.executor.stop(bench.order(*bench.program()).attempt.id, grace_s=1.0)


def test_what_does_not_all_run_in_time_is_withdrawn(bench: PodBench) -> None:
    bench.settings = {"start_timeout_s": 60.0}
    bench.again()
    small, large = bench.program(hold=True), bench.program(hold=True)
    roles = {"a": {"command": small, "cpu": 0.25}, "b": {"command": large, "cpu": 64}}
    attempt_id = bench.launch("unused", roles=roles, framework="none", grace=1)
    bench.wait(50)
    assert not is_over(bench.see(attempt_id))
    bench.wait(20)
    bench.again()
    found = bench.end(attempt_id)
    assert (found.phase, found.reason) == (Phase.LOST, Reason.START_TIMEOUT)
    assert "1 of 2 pods did not run within 60 s: Kubernetes finds no node" in found.message
    assert nothing_runs(bench, attempt_id)


def test_a_runner_that_is_never_heard_is_withdrawn(bench: PodBench) -> None:
    bench.settings = {"start_timeout_s": 60.0}
    bench.again()
    attempt_id = bench.launch(*bench.program(hold=True))
    bench.executor._reports = dict  # its pod does not reach the platform
    bench.wait(110)
    assert seen(bench, attempt_id).phase is Phase.STARTING
    bench.wait(15)
    found = bench.end(attempt_id)
    assert (found.phase, found.reason) == (Phase.LOST, Reason.START_TIMEOUT)
    assert "the runner of main-0 was never heard" in found.message
    assert nothing_runs(bench, attempt_id)


# what is lost


def test_what_is_launched_while_everything_is_listed_is_not_lost(bench: PodBench) -> None:
    order = bench.order(*bench.program(lines=("once",)))
    bench.executor._runner_at = bench.executor._monotonic()
    handle = bench.cluster.handle

    def launches(method: str, url: str, body: object) -> object:
        found = handle(method, url, body)
        if method == "GET" and "/secrets" in url and not bench.cluster.all("secrets"):
            bench.cluster.handle = handle  # type: ignore[method-assign]
            bench.executor.launch(order)
            bench.cluster.tick()
        return found

    bench.cluster.handle = launches  # type: ignore[method-assign, assignment]
    bench.clock.at += 20 * SECOND
    assert [one.phase for one in bench.executor.observe()] == [Phase.STARTING]
    assert bench.end(order.attempt.id).phase is Phase.ENDED


def test_an_image_without_python_is_run_without_the_runner_whatever_the_lists_have(bench: PodBench) -> None:
    attempt_id = bench.launch(*bench.program(code=3))
    said = 'exec: "python3": executable file not found in $PATH: unknown'

    def container(pod: dict[str, object]) -> Container:
        is_bare = "danlu.io/bare" in pod["metadata"]["labels"]  # type: ignore[index]
        return Container(3, "Error") if is_bare else Container(128, "StartError", said)

    bench.cluster.containers = container
    found = bench.end(attempt_id)
    assert [task.exit_code for task in found.tasks] == [3]
    assert [job["metadata"]["name"] for job in bench.cluster.all("jobs")] == [f"{attempt_id}-main-b"]


def test_another_platform_of_the_namespace_is_left_alone(bench: PodBench) -> None:
    attempt_id = running(bench)
    for kind in ("secrets", "jobs", "pods"):
        for item in bench.cluster.all(kind):
            item["metadata"]["labels"]["danlu.io/platform"] = "other"
    bench.collected.add(attempt_id)  # it is the other's database that has what its runner says
    bench.again()
    assert bench.executor.observe() == ()
    assert not nothing_runs(bench, attempt_id)
