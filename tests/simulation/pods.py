"""Pods of a played cluster as what a world's attempts run on, by the real executor, with all that happens to clusters."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from danlu.database import reports
from danlu.database.records import ATTEMPTS
from danlu.domain.jobs import LOST, Attempt, AttemptState, Job, Reason
from danlu.executors.kubernetes.client import Api
from danlu.executors.kubernetes.executor import KubernetesConfig, KubernetesExecutor
from danlu.executors.kubernetes.manifests import ATTEMPT, INDEX, ROLE, PodSettings
from danlu.services.reports import seen
from tests.cluster import OVER, Cluster, Container
from tests.simulation.faults import SECOND
from tests.simulation.ground import NODES, Act, Broken, Share
from tests.simulation.runners import Runner, Way
from tests.simulation.wire import Trouble, Wire

if TYPE_CHECKING:
    from tests.simulation.world import World

SETTINGS: Final = PodSettings(
    namespace="jobs", platform="danlu", url="http://danlu.jobs:7070", image="python", runner="danlu-runner-0"
)
START_TIMEOUT_S: Final = 60.0
TROUBLE_S: Final = 60.0
TROUBLES: Final = (*["down"] * 2, "slow", "erring", "image", "quota", *["delete"] * 3, "namespace")
QUOTA: Final = 'pods "x" is forbidden: exceeded quota: gpus, requested: 8, used: 0, limited: 4'
NOT_BY_ITSELF: Final = LOST | {Reason.STOPPED, Reason.LAUNCH_REJECTED, Reason.COMPLETED, Reason.MAX_TIME_EXCEEDED}
"""With what an attempt ends that no task's failure ended."""


class Ended(threading.Event):
    """The end of a watch: where it would be begun again after a pause, it is not."""

    def wait(self, timeout: float | None = None) -> bool:
        del timeout
        self.set()
        return True


class Pods:
    """See Ground."""

    own_environment: dict[str, Any] = {"env": "python"}  # noqa: RUF012
    never_ran = (*LOST, Reason.LAUNCH_REJECTED, Reason.STOPPED)
    pauses_s = [0.1, 1.0, 1.0, 5.0, 20.0]  # noqa: RUF012
    wrong_s = 3

    def __init__(self, world: World) -> None:
        self.world, self.random, self.time = world, world.random, world.true_time
        self.cluster = Cluster(self.time.now, self._container, unique=lambda: f"{self.random.getrandbits(80):020x}")
        self.trouble, self.way = Trouble(), Way()
        self.runners: dict[str, Runner] = {}
        """by the pod's uid"""
        self.fenced: set[str] = set()
        """pods that were on a node that was lost, and of Jobs that were made after their attempt's end: known by their ids"""
        self.late_jobs: set[str] = set()
        self._acts = False
        self._namespace()
        for node in NODES:
            labels = {"nvidia.com/gpu.product": node.gpus[0].kind}
            cpu, memory = node.cpu_milli // 1000, str(node.memory_bytes)
            self.cluster.node(node.name, cpu=cpu, memory=memory, gpus=len(node.gpus), labels=labels)

    def _namespace(self) -> None:
        if ("namespaces", "", SETTINGS.namespace) not in self.cluster.objects:
            self.cluster.put("namespaces", {"metadata": {"name": SETTINGS.namespace}})

    def server(self) -> KubernetesExecutor:
        world = self.world
        self.wire = wire = Wire(self.cluster, self.time, self.random, self.trouble, self._between, self._posted)
        executor: KubernetesExecutor = world.parts.executor(
            KubernetesConfig(SETTINGS, b"runner", start_timeout_s=START_TIMEOUT_S),
            Api(lambda: wire, world.time_passes), reports=seen(world.real), now=world.clock.now,
            monotonic=lambda: self.time.at / SECOND,
        )  # fmt: skip
        return executor

    # what can happen

    @property
    def acts(self) -> Mapping[str, tuple[float, Act]]:
        return {
            "cluster": (6, self.cluster.tick), "runner": (10, self._runner), "watch": (1, self._watch),
            "again": (0.5, self._again), "trouble": (1.2, self._trouble), "turn": (3, self._turn),
            "node": (0.5, self.node),
        }  # fmt: skip

    def _container(self, pod: dict[str, Any]) -> Container:
        uid, marks = pod["metadata"]["uid"], pod["metadata"]["labels"]
        if uid not in self.runners:
            self.runners[uid] = Runner.begin(self.world, marks[ATTEMPT], f"{marks[ROLE]}-{marks[INDEX]}", self.way)
        return self.runners[uid].container(pod)

    def _runner(self) -> None:
        busy = [runner for runner in self.runners.values() if not runner.silent]
        if busy:
            self.random.choice(busy).step(self.random, self.way)

    def _turn(self) -> None:
        """Everybody does a little: most of a life is uneventful."""
        for name in list(self.world.controllers):
            self.world.controller(name)
        while self.world.tasks:
            self.world.task()
        for _ in range(2):
            self.cluster.tick()
            for runner in list(self.runners.values()):
                runner.step(self.random, self.way)
            self.world.time_passes(0.5)

    def _again(self) -> None:
        if self.runners and self.way.lossy:
            self.random.choice([*self.runners.values()]).repeat(self.random)

    def _watch(self) -> None:
        """The watch of pods goes on for a while."""
        self.wire.stopping = Ended()
        self.world.executor.cluster.watch(self.wire.stopping, lambda: None)

    def _between(self) -> None:
        """While a server asks the cluster for something, all others go on."""
        if self._acts or self.random.random() > (0.1 if self.way.lossy else 0.0):
            return
        self._acts = True
        try:
            self.random.choice([self.cluster.tick, self._runner, self.world.user])()
        finally:
            self._acts = False

    def _posted(self, kind: str, item: Any) -> None:
        if kind == "jobs":
            attempt_id = item["metadata"]["labels"][ATTEMPT]
            attempt = self.world.real.read(lambda tx: ATTEMPTS.require(tx, attempt_id))
            if attempt.state is AttemptState.ENDED:
                self.late_jobs.add(item["metadata"]["uid"])

    def node(self) -> None:
        """A node does not answer any more: it is gone with all that it runs, or runs on unseen; or it is back."""
        lost = [node for node in self.cluster.all("nodes") if node.get("lost")]
        if lost:
            self._find(lost[0]["metadata"]["name"])
            return
        name = self.random.choice(NODES).name
        self.world.log.append(f"lose {name}")
        self.cluster.lose_node(name)
        gone, unreached = self.random.random() < 0.5, self.random.random() < 0.5
        for pod in self.cluster.all("pods"):
            if pod["spec"].get("nodeName") == name:
                self.fenced.add(pod["metadata"]["uid"])
                runner = self.runners.get(pod["metadata"]["uid"])
                if runner is not None and gone:
                    runner.die()
                elif runner is not None:
                    runner.unreached = unreached

    def _find(self, name: str) -> None:
        self.world.log.append(f"find {name}")
        self.cluster.find_node(name)
        for runner in self.runners.values():
            runner.unreached = False

    def _trouble(self) -> None:
        until = self.time.at + int(self.random.uniform(1, TROUBLE_S) * SECOND)
        what = self.random.choice(
            ["down", "down", "slow", "erring", "image", "quota", "delete", "delete", "delete", "namespace"]
        )
        self.world.log.append(what)
        if what in ("down", "slow", "erring"):
            setattr(self.trouble, f"{what}_until", until)
        elif what == "image":
            self.cluster.images ^= {SETTINGS.image}
        elif what == "quota":
            self.cluster.refuse_pods = "" if self.cluster.refuse_pods else QUOTA
        elif what == "delete":
            kind = self.random.choice(["pods", "jobs", "secrets", "services"])
            found = self.cluster.all(kind)
            if found:
                item = self.random.choice(found)
                self.world.log.append(f"delete {kind} {item['metadata']['name']}")
                self.cluster._delete(kind, item)
        elif ("namespaces", "", SETTINGS.namespace) not in self.cluster.objects:
            self._namespace()
        elif self.random.random() < 0.3:
            self.cluster.delete_namespace(SETTINGS.namespace)

    def shake(self) -> None:
        self.way.lossy, self.way.killed, self.trouble.erring = 0.15, 0.15, 0.06

    def calm(self) -> None:
        self.way.lossy = self.way.killed = self.trouble.erring = 0.0
        self.trouble.down_until = self.trouble.slow_until = self.trouble.erring_until = 0
        self.cluster.images.add(SETTINGS.image)
        self.cluster.refuse_pods = ""
        self._namespace()
        for node in self.cluster.all("nodes"):
            if node.get("lost"):
                self._find(node["metadata"]["name"])

    def goes_on(self) -> None:
        for _ in range(3):
            self.cluster.tick()
        for runner in self.runners.values():
            runner.finish()
        self.cluster.tick()

    # promises

    @property
    def begun(self) -> set[str]:
        return {runner.attempt_id for runner in self.runners.values()}

    def left(self) -> list[str]:
        kinds = ("secrets", "jobs", "pods", "services")
        return [f"{kind} {item['metadata']['name']}" for kind in kinds for item in self.cluster.all(kind)]

    def shares(self) -> list[Share]:
        return []  # the plan is the database's, and where pods run is Kubernetes' choice

    def check(self, held: list[Attempt]) -> None:
        holding, running = {attempt.id for attempt in held}, set[tuple[str, str]]()
        for pod in self.cluster.all("pods"):
            runner = self.runners.get(pod["metadata"]["uid"])
            known_by_id = pod["metadata"]["uid"] in self.fenced or self.late_jobs.intersection(_owners(pod))
            if runner is None or known_by_id or pod["status"]["phase"] in OVER:
                continue
            if runner.attempt_id not in holding:
                raise Broken(f"{runner.attempt_id} holds nothing any more, and {pod['metadata']['name']} runs")
            if (runner.attempt_id, runner.name) in running:
                raise Broken(f"{runner.name} of {runner.attempt_id} runs twice")
            running.add((runner.attempt_id, runner.name))

    def check_stored(self) -> None:
        told = self.world.real.read(reports.Heard().look)
        late = (
            self.world.real.read(lambda tx: ATTEMPTS.find(tx, id=tuple(told), collected=True, limit=1)) if told else []
        )
        if late:
            raise Broken(f"a report of {late[0].id} was taken after that was over")

    def _of(self, attempt: Attempt, task: str) -> list[Runner]:
        return [one for one in self.runners.values() if (one.attempt_id, one.name) == (attempt.id, task)]

    def check_attempt(self, job: Job, attempt: Attempt) -> None:
        asked = {task.name: task for task in job.spec.tasks}
        every = {name: self._of(attempt, name) for name in asked}
        own = [one.task() for some in every.values() for one in some]
        if attempt.reason is Reason.COMPLETED:
            for name, some in every.items():
                if asked[name].decides and all(one.task().exit_code != 0 for one in some):
                    raise Broken(f"{attempt.id} is completed, and {name} of it is not: {[one.task() for one in some]}")
        elif attempt.reason is Reason.MAX_TIME_EXCEEDED:
            if not any(one.process.was_late() for some in every.values() for one in some):
                raise Broken(f"{attempt.id} had time left")
        elif attempt.reason not in NOT_BY_ITSELF and not any(task.exit_code for task in own):
            raise Broken(f"{attempt.id} is charged with {attempt.reason} ({attempt.message}), and nothing of it failed")

    def log_is_whole(self, attempt: Attempt, task: str, kept: bytes) -> bool:
        """Whether nothing was lost that had arrived, and all had if its runner could say its last word."""
        some = self._of(attempt, task)
        if not some:
            return not kept
        whole = [one.process.log(task, self.time.at) for one in some]
        if not any(log[: len(kept)] == kept for log in whole):
            return False
        return not any(one.all_told and kept != log for one, log in zip(some, whole, strict=True))


def _owners(pod: dict[str, Any]) -> set[str]:
    return {one["uid"] for one in pod["metadata"]["ownerReferences"]}
