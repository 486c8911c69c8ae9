"""The executor on a real cluster: what the played one in tests/cluster.py claims of Kubernetes is so."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from danlu.domain.environments import Interpreter
from danlu.domain.jobs import Reason
from danlu.domain.reports import TaskReport
from danlu.executors.base import LaunchOrder, Observation, Phase
from danlu.executors.kubernetes.client import Api, connect
from danlu.executors.kubernetes.executor import KubernetesConfig, KubernetesExecutor
from danlu.executors.kubernetes.manifests import ROLE, PodSettings
from danlu.runner import formats
from tests.executors import Bench
from tests.kubernetes.cluster import layout
from tests.kubernetes.cluster.images import BUSYBOX, PYTHON
from tests.kubernetes.cluster.processes import wait_until
from tests.kubernetes.conftest import Namespace

TIMEOUT_S = 120.0
OVER = (Phase.ENDED, Phase.LOST)
RUNNER = """
import json, os, signal, subprocess, sys
order = json.load(open("/danlu/order/order.json"))
name = "%s-%s" % (os.environ["DANLU_POD_ROLE"], os.environ["JOB_COMPLETION_INDEX"])
(task,) = [task for task in order["tasks"] if task["name"] == name]
for folder in ("/danlu/attempt", "/danlu/checkpoints", "/danlu/secrets", "/dev/shm"):
    open(folder + "/written", "w").close()
print(name, os.getuid(), len(open("/danlu/order/token").read()), flush=True)
process = subprocess.Popen(task["argv"], cwd="/danlu/attempt")
signal.signal(signal.SIGTERM, lambda *_: process.terminate())
sys.exit(0 if process.wait() == 0 else 1)
"""
"""Stands for the runner: it starts the task's command, and tells nobody."""


FIND = """
import json, socket, sys, time
host = json.load(open("/danlu/order/order.json"))["tasks"][0]["host"]
for _ in range(600):
    try:
        print(socket.gethostbyname(host))
        break
    except OSError:
        time.sleep(0.1)
else:
    sys.exit(3)
"""


class RealBench(Bench):
    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as archive:
            archive.writestr("__main__.py", RUNNER)
        settings = PodSettings(
            namespace=namespace.name,
            platform="test",
            url="http://nowhere.test",
            image=PYTHON,
            runner="danlu-runner-test",
        )
        self.reports: dict[str, dict[str, TaskReport]] = {}
        api = Api(partial(connect, layout.kubeconfig(), None))
        self.executor = KubernetesExecutor(
            KubernetesConfig(settings, made.getvalue(), start_timeout_s=300), api, reports=lambda: self.reports
        )
        self.executor.start()

    def interpreter(self) -> Interpreter | None:
        return None

    def until(self, condition: Callable[[], bool]) -> None:
        wait_until("the attempt", TIMEOUT_S, condition)

    def order(self, *words: str, **fields: Any) -> LaunchOrder:
        order = super().order(*words, **{"cpu": 0.1, "grace": 1, **fields})
        self.reports[order.attempt.id] = {
            task.name: TaskReport(events=({"event": "runner", "at": 1},)) for task in order.attempt.tasks
        }
        return order

    def pods(self, attempt_id: str) -> list[dict[str, Any]]:
        return [pod for pod in self.namespace.pods() if pod["metadata"]["labels"].get("danlu.io/attempt") == attempt_id]

    def running(self, attempt_id: str) -> None:
        self.until(
            lambda: bool(pods := self.pods(attempt_id)) and all(pod["status"]["phase"] == "Running" for pod in pods)
        )

    def told(self, attempt_id: str, reason: Reason) -> Observation:
        self.until(lambda: (seen := self.see(attempt_id)) is not None and seen.reason is reason)
        seen = self.see(attempt_id)
        assert seen is not None
        return seen


@pytest.fixture
def bench(namespace: Namespace) -> Iterator[RealBench]:
    bench = RealBench(namespace)
    yield bench
    bench.executor.close()


def test_it_has_the_clusters_nodes(bench: RealBench) -> None:
    found = {node.name: node for node in bench.executor.capacity()}
    assert {"node-1", "node-2"} <= set(found)
    assert found["node-1"].memory_bytes > 2**30


def test_an_attempt_runs_as_nobody_and_leaves_nothing(bench: RealBench) -> None:
    order = bench.order("sh", "-c", "id -u", memory="128MiB")
    bench.executor.launch(order)
    bench.executor.launch(order)
    found = bench.end(order.attempt.id)
    assert (found.phase, [task.exit_code for task in found.tasks]) == (Phase.ENDED, [0])
    (pod,) = bench.pods(order.attempt.id)
    assert bench.namespace.log(pod).splitlines() == [f"main-0 200000 {len(order.token)}", "200000"]
    bench.executor.forget(order.attempt.id)
    assert bench.executor.observe() == ()
    bench.until(lambda: not bench.pods(order.attempt.id))


def test_the_tasks_of_a_gang_find_each_other_by_name(bench: RealBench) -> None:
    roles = {"first": {"replicas": 1}, "others": {"replicas": 2}}
    attempt_id = bench.launch("python3", "-c", FIND, roles=roles, framework="none")
    found = bench.end(attempt_id)
    assert [task.exit_code for task in found.tasks] == [0, 0, 0]


def test_a_stop_ends_the_pods(bench: RealBench) -> None:
    attempt_id = bench.launch("sleep", "1000")
    bench.running(attempt_id)
    bench.executor.stop(attempt_id, grace_s=1)
    assert bench.end(attempt_id).stopped
    bench.until(lambda: not bench.pods(attempt_id))


def test_an_image_that_is_not_there_is_told(bench: RealBench) -> None:
    attempt_id = bench.launch("true", image="danlu.test/nothing:1")
    assert "danlu.test/nothing:1 cannot be pulled on node-" in bench.told(attempt_id, Reason.IMAGE_PULL_FAILED).message


def test_what_fits_nowhere_is_told_with_the_numbers(bench: RealBench) -> None:
    attempt_id = bench.launch("true", cpu=500)
    assert "Insufficient cpu" in bench.told(attempt_id, Reason.UNSCHEDULABLE).message


def test_a_quota_that_refuses_the_pods_is_told_and_goes_on_when_it_is_raised(bench: RealBench) -> None:
    quota = {
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}},
    }  # fmt: skip
    bench.namespace.apply(quota)
    attempt_id = bench.launch("true")
    assert "exceeded quota: none, requested: pods=1" in bench.told(attempt_id, Reason.POD_REFUSED).message
    bench.namespace.api("DELETE", f"/api/v1/namespaces/{bench.namespace.name}/resourcequotas/none")
    assert bench.end(attempt_id).phase is Phase.ENDED


def test_a_pod_deleted_by_hand_ends_all_of_its_attempt(bench: RealBench) -> None:
    roles = {"ps": {"replicas": 1}, "worker": {"replicas": 2}}
    attempt_id = bench.launch("sleep", "1000", roles=roles, framework="none")
    bench.running(attempt_id)
    bench.executor.observe()
    pod = next(pod for pod in bench.pods(attempt_id) if pod["metadata"]["labels"][ROLE] == "worker")
    bench.namespace.api("DELETE", f"/api/v1/namespaces/{bench.namespace.name}/pods/{pod['metadata']['name']}")
    found = bench.end(attempt_id)
    assert (found.phase, found.reason) == (Phase.LOST, Reason.POD_DELETED)
    assert all(one["status"]["phase"] != "Running" for one in bench.pods(attempt_id))


def test_an_image_without_python_runs_its_own_command(bench: RealBench) -> None:
    attempt_id = bench.launch("sh", "-c", "echo $DANLU_TASK $LR; exit 3", image=BUSYBOX, variables={"LR": "0.1"})
    found = bench.end(attempt_id)
    assert [task.exit_code for task in found.tasks] == [3]
    data = b"".join(piece.data for piece in bench.executor.pending(attempt_id, max_bytes=1000))
    assert [line.text for line in formats.parse_lines(data.decode())] == ["main-0 0.1"]


def test_another_server_finds_all_of_it_again(bench: RealBench) -> None:
    attempt_id = bench.launch("sleep", "1000")
    bench.running(attempt_id)
    other = RealBench(bench.namespace)
    other.reports = bench.reports
    other.until(lambda: other.see(attempt_id) is not None)
    other.executor.stop(attempt_id, grace_s=1)
    assert other.end(attempt_id).stopped
    assert bench.end(attempt_id).stopped
    other.executor.close()
