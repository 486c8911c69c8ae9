"""The Kubernetes executor on a bench: a played cluster, whose pods run what the simulated executor's scripts say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from danlu.domain.reports import TaskReport
from danlu.executors.base import LaunchOrder, Notice, Observation, Phase
from danlu.executors.kubernetes.client import Api
from danlu.executors.kubernetes.executor import KubernetesConfig, KubernetesExecutor
from danlu.executors.kubernetes.manifests import ATTEMPT, INDEX, ROLE, PodSettings
from danlu.executors.simulated import SimulatedExecutor
from danlu.runner import formats
from tests.cluster import Cluster, Container, Server
from tests.executors import Bench, SteppedClock
from tests.factories import SECOND, make_capacity
from tests.runners import report

SETTINGS = PodSettings(
    namespace="jobs", platform="danlu", url="http://danlu.jobs:7070", image="python", runner="danlu-runner-0"
)


class Wired(KubernetesExecutor):
    """The executor, and the wire by which the database tells runners of a stop."""

    bench: PodBench

    def stop(self, attempt_id: str, *, grace_s: float, notice: Notice | None = None) -> None:
        super().stop(attempt_id, grace_s=grace_s, notice=notice)
        self.bench.runners.stop(attempt_id, grace_s=grace_s, notice=notice)
        self.bench.told.add(attempt_id)

    def forget(self, attempt_id: str) -> None:
        """What was said of an attempt is removed before it is forgotten."""
        super().forget(attempt_id)
        cluster = self.bench.cluster
        if ("secrets", SETTINGS.namespace, attempt_id) not in cluster.objects and not cluster.pods(attempt_id):
            self.bench.collected.add(attempt_id)


class PodBench(Bench):
    def __init__(self) -> None:
        self.clock = SteppedClock()
        self.runners = SimulatedExecutor((make_capacity(),), self.clock, Random(1))
        self.orders: dict[str, LaunchOrder] = {}
        self.told: set[str] = set()
        self.lost: set[str] = set()
        self.evicted: set[str] = set()
        self.collected: set[str] = set()
        self.cluster = Cluster(self.clock.now, self.container)
        self.cluster.put("namespaces", {"metadata": {"name": "jobs"}})
        self.cluster.node("node-1")
        self.server = Server(self.cluster)
        self.settings: dict[str, Any] = {}
        self.executor = self._open()

    def _open(self) -> Wired:
        executor = Wired(
            KubernetesConfig(SETTINGS, b"runner", **self.settings), Api(self._connect, self._sleep), reports=self.reports,
            now=self.clock.now, monotonic=lambda: self.clock.at / SECOND,
        )  # fmt: skip
        executor.bench = self
        return executor

    def _connect(self) -> Any:
        from lightkube.config import client_adapter
        from lightkube.config.kubeconfig import KubeConfig

        config = KubeConfig.from_dict(self.server.kubeconfig()).get()
        assert config is not None
        return client_adapter.Client(config, client_adapter.ConnectionParams(trust_env=False))

    def _sleep(self, seconds: float) -> None:
        self.clock.at += int(seconds * SECOND)

    def order(self, *words: str, **fields: Any) -> LaunchOrder:
        order = super().order(*words, **fields)
        self.orders[order.attempt.id] = order
        return order

    # runners

    def container(self, pod: Mapping[str, Any]) -> Container:
        marks = pod["metadata"]["labels"]
        attempt_id, name = marks[ATTEMPT], f"{marks[ROLE]}-{marks[INDEX]}"
        if attempt_id in self.lost:
            return Container(137, "Error")
        order = self.orders[attempt_id]
        every = self.cluster.pods(attempt_id)
        if attempt_id not in self.runners.processes:
            if len(every) == len(order.attempt.tasks) and all(one["status"]["phase"] != "Pending" for one in every):
                self.runners.launch(order)
            elif pod["metadata"].get("deletionTimestamp"):
                return Container(1, "Error")
            return Container()
        seen = self.played(attempt_id)
        task = next(one for one in seen.tasks or order.attempt.tasks if one.name == name)
        if seen.phase is Phase.ENDED or task.ended_at is not None:
            return Container(0 if task.exit_code == 0 else 1, "Completed" if task.exit_code == 0 else "Error")
        if pod["metadata"].get("deletionTimestamp"):
            if attempt_id not in self.told and self.runners.processes[attempt_id].settled_at() is None:
                self.evicted.add(attempt_id)
            left_s = (pod["ends_at"] - self.clock.at) / SECOND - 30
            self.runners.stop(attempt_id, grace_s=max(0.0, left_s))
        return Container()

    def played(self, attempt_id: str) -> Observation:
        return next(one for one in self.runners.observe() if one.attempt_id == attempt_id)

    def reports(self) -> dict[str, dict[str, TaskReport]]:
        return {
            seen.attempt_id: {task.name: self._report(seen, task) for task in seen.tasks}
            for seen in self.runners.observe()
            if seen.attempt_id not in self.collected
        }

    def _report(self, seen: Observation, task: Any) -> TaskReport:
        over = seen.phase is Phase.ENDED or task.ended_at is not None
        flags: dict[str, Any] = {"stopped": seen.stopped, "timed_out": seen.timed_out, "preempted": seen.preempted}
        if seen.attempt_id in self.evicted:
            flags = {"evicted": True}
        told = report(seen, task, flags if over else None, silent=seen.attempt_id in self.lost)
        return told.model_copy(update={"seen_at": self.clock.at})

    # the bench

    def log(self, attempt_id: str, task: str | None = None) -> str:
        pieces = self.runners.pending(attempt_id, max_bytes=1 << 20) if attempt_id in self.runners.processes else ()
        data = b"".join(p.data for p in pieces if task in (None, p.task))
        return "\n".join(line.text for line in formats.parse_lines(data.decode()))

    def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(2000):
            if condition():
                return
            self.clock.at += SECOND // 10
            self.cluster.tick()
        raise AssertionError("not within 200 s")

    def wait(self, seconds: float) -> None:
        """Lets time pass, and looks each second."""
        for _ in range(round(seconds)):
            self.clock.at += SECOND
            self.cluster.tick()
            self.executor.observe()

    def again(self) -> None:
        self.executor.close()
        self.executor = self._open()

    def lose(self, attempt_id: str) -> None:
        self.lost.add(attempt_id)
        self.runners.processes[attempt_id].lost_at = self.clock.now()

    def close(self) -> None:
        self.executor.close()
        self.server.close()

    def program(
        self,
        *,
        lines: tuple[str, ...] = (),
        code: int = 0,
        hold: bool = False,
        deaf: bool = False,
        heeds: bool = False,
        after_s: float = 0,
    ) -> list[str]:
        flags = [word for word, wanted in (("hold", hold), ("deaf", deaf), ("heeds", heeds)) if wanted]
        return ["simulated", *(f"print:{line}" for line in lines), f"sleep:{after_s}", *flags, f"exit:{code}"]


def running(bench: PodBench, **fields: object) -> str:
    attempt_id = bench.launch(*bench.program(lines=("up",), hold=True), **fields)
    bench.printed(attempt_id, "up")
    bench.until(lambda: seen(bench, attempt_id).phase is Phase.RUNNING)
    return attempt_id


def gang(bench: PodBench, replicas: int = 2) -> str:
    program = bench.program(lines=("up",), hold=True)
    roles = {"ps": {"replicas": 1, "command": program}, "worker": {"replicas": replicas, "command": program}}
    attempt_id = bench.launch("unused", roles=roles, framework="tensorflow", grace=1, cpu=0.25)
    bench.until(lambda: bench.log(attempt_id).count("up") == replicas + 1)
    return attempt_id


def seen(bench: PodBench, attempt_id: str) -> Observation:
    found = bench.see(attempt_id)
    assert found is not None
    return found


def is_over(found: Observation | None) -> bool:
    return found is not None and found.phase in (Phase.ENDED, Phase.LOST)


def nothing_runs(bench: PodBench, attempt_id: str) -> bool:
    return all(pod["status"]["phase"] in ("Succeeded", "Failed") for pod in bench.cluster.pods(attempt_id))
