"""Attempts as pods of a Kubernetes cluster: what is launched is found again by its labels, whoever launched it.

The attempt's Secret is its account: while it is there, the attempt is held; its annotations say what was asked of it. This
object holds nothing that it could not read again, but for what nobody can read any more.
"""

from __future__ import annotations

import base64
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from danlu.domain.isolation import Layer
from danlu.domain.jobs import Reason
from danlu.domain.nodes import NodeCapacity
from danlu.domain.reports import TaskReport
from danlu.domain.sessions import SessionRequest
from danlu.errors import DanluError, ExecutorUnavailable, LaunchRejected, NotRunning
from danlu.executors.base import Capabilities, Hint, LaunchOrder, Notice, Observation, Phase
from danlu.executors.kubernetes import bare, entering, manifests, withdrawn
from danlu.executors.kubernetes.client import Api, Refused, batch, core
from danlu.executors.kubernetes.cluster import Cluster, Objects, is_over, unavailable
from danlu.executors.kubernetes.manifests import ATTEMPT, INDEX, ROLE, TASKS, TO_DELIVER_S, PodSettings
from danlu.executors.kubernetes.nodes import Health, capacity, health, named
from danlu.executors.kubernetes.observing import Held, Look, World, look
from danlu.executors.kubernetes.quantities import SECOND_NS, ns
from danlu.executors.kubernetes.reasons import Why
from danlu.executors.kubernetes.spools import NOTHING_KEPT, Kept, PodSpools
from danlu.executors.kubernetes.template import Templates
from danlu.executors.kubernetes.withdrawn import STOPPED, TERMINATED

LOG: Final = logging.getLogger("danlu.executors")
ENDING: Final = "danlu.io/ending"
START_TIMEOUT_S: Final = 600.0
AGAIN_S: Final = 30.0
"""So often what has to end is deleted again, while it has not."""
RUNNER_S: Final = 60.0
"""So often the runner's ConfigMap is made again at a launch: it may be gone, by hand or with its namespace."""
LAUNCH_S: Final = 60.0
"""So long after its Secret was made an attempt without its Jobs counts as one whose launch was cut short."""
PATIENCE_S: Final = 1.0
"""Pods that are not there by then: the cluster's warnings of their Job are looked at."""
ORPHAN_S: Final = 30.0
"""Pods whose Secret is not there for so long are nobody's: they are ended."""
POD_PATIENCE_S: Final = 15.0
"""And of pods that do not run by then: before, many a warning is over a moment later."""
COLLECTIONS: Final = {"jobs": batch, "services": core}

NO_LAYERS: Final = {
    str(layer): "the cluster's own isolation stands in its place"
    for layer in Layer
    if layer not in (*manifests.LAYERS, Layer.MEMORY_LIMIT, Layer.CPU_LIMIT)
}

Reports = Callable[[], Mapping[str, Mapping[str, TaskReport]]]


@dataclass(frozen=True, slots=True)
class KubernetesConfig:
    """How the executor works: what pods are like, the runner's zipapp, projects' templates, how long a start may take.

    ``kept`` tells what is kept of a log that it reads itself.
    """

    settings: PodSettings
    runner: bytes = b""
    templates: Templates = field(default_factory=Templates)
    start_timeout_s: float = START_TIMEOUT_S
    kept: Kept = NOTHING_KEPT


class Known(NamedTuple):
    """What an attempt's Secret says: when it was made (ns UTC), its account (see manifests.tasks), and that as its text."""

    created_at: int
    account: Mapping[str, Any]
    text: str


@dataclass(slots=True)
class Asked:
    """What was asked of the cluster for the end of an attempt, by this server, and when (monotonic)."""

    grace_s: float
    at: float
    why: Why | None = None


class KubernetesExecutor(PodSpools):
    """See Executor and Spools in executors/base.py."""

    def __init__(
        self, config: KubernetesConfig, api: Api, *, reports: Reports, hint: Hint = lambda: None,
        now: Callable[[], int] = time.time_ns, monotonic: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Asks nothing yet. ``reports`` returns what runners reported, by attempt and task; ``now`` ns UTC."""
        super().__init__(api, config.settings.namespace, config.kept)
        self.config, self._api, self._reports, self._hint = config, api, reports, hint
        self._now, self._monotonic = now, monotonic
        settings = config.settings
        self.cluster = Cluster(api, settings.namespace, settings.platform, monotonic)
        self._lock = threading.Lock()
        self._launching: set[str] = set()
        self._whole: set[str] = set()
        self._anew: set[str] = set()
        self._orphans: dict[str, float] = {}
        self._heard: frozenset[str] = frozenset()
        self._gone: dict[str, float] = {}
        self._known: dict[str, Known] = {}
        self._asked: dict[str, Asked] = {}
        self._launched: dict[str, float] = {}
        self._forgotten: dict[str, float] = {}
        """what was done to attempts, and when (monotonic): a list that was begun before does not have it"""
        self._seen: dict[str, Look] = {}
        self._runner_at: float | None = None
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None
        layers = (*(Layer(name) for name in manifests.LAYERS), Layer.MEMORY_LIMIT, Layer.CPU_LIMIT)
        self.capabilities = Capabilities(
            name="kubernetes", layers=layers, no_layers=NO_LAYERS, shared=True, images="Kubernetes", archives=True,
            sessions=True,
        )  # fmt: skip

    def start(self) -> None:
        """Begins to watch; what it finds is looked at when somebody asks."""
        self._watcher = threading.Thread(
            target=self.cluster.watch, args=(self._stopping, self._hint), name="kubernetes-watch", daemon=True
        )
        self._watcher.start()

    def close(self) -> None:
        """Stops watching; attempts go on."""
        self._stopping.set()
        self._api.close()

    # Executor

    def capacity(self) -> tuple[NodeCapacity, ...]:
        """See Executor."""
        settings, tolerations = self.config.settings, self.config.templates.default.tolerations
        return capacity(self.cluster.nodes(), self.cluster.everybodys_pods(), settings, tolerations)

    def launch(self, order: LaunchOrder) -> None:
        """See Executor."""
        attempt_id = order.attempt.id
        with self._lock:
            if attempt_id in self._launching:
                return
            self._launching.add(attempt_id)
        try:
            missing = [layer for layer in order.require if layer not in self.capabilities.layers]
            if missing:
                raise LaunchRejected(f"its project requires {', '.join(missing)}, which pods do not have")
            self._make(order)
        finally:
            self.cluster.changed()
            with self._lock:
                self._launching.discard(attempt_id)

    def _make(self, order: LaunchOrder) -> None:
        attempt_id, kind = order.attempt.id, order.job.spec.gpu_kind
        settings = named(self.config.settings, kind, self.cluster.nodes)
        secret = manifests.secret(order, settings)
        template = self.config.templates.of(order.job.project)
        manifests.rest(order, settings, template, owner_uid="")  # that it can be is known before anything is made
        try:
            if self._runner_at is None or self._monotonic() - self._runner_at >= RUNNER_S:
                self._create("configmaps", manifests.config_map(settings, self.config.runner))
                self._runner_at = self._monotonic()
            # what was heard of has begun: where its Secret is gone meanwhile, it is not begun a second time
            made = None if attempt_id in self._heard else self._create("secrets", secret)
            if made is None:
                made = self._api.get(core(settings.namespace, "secrets", attempt_id))
                marks = made["metadata"].get("annotations") or {}
                if STOPPED in marks or ENDING in marks or attempt_id in self._whole:
                    return  # what was ended is not begun again
            for content in manifests.rest(order, settings, template, owner_uid=made["metadata"]["uid"]):
                self._create("jobs" if content["kind"] == "Job" else "services", content)
        except Refused as error:
            if _passes(error):
                raise ExecutorUnavailable(f"the cluster does not take {attempt_id} now: {error.message}") from error
            self._api.delete(core(settings.namespace, "secrets", attempt_id))
            raise LaunchRejected(f"the cluster refuses it ({error.status} {error.reason}): {error.message}") from error
        self._whole.add(attempt_id)
        self._launched[attempt_id] = self._monotonic()

    def _create(self, kind: str, content: dict[str, Any]) -> dict[str, Any] | None:
        """Makes an object; returns None where there is one of that name already."""
        path = COLLECTIONS.get(kind, core)(self.config.settings.namespace, kind)
        try:
            return self._api.create(path, content)
        except Refused as error:
            if error.exists:
                return None
            raise

    def observe(self) -> tuple[Observation, ...]:
        """See Executor."""
        with self._lock:
            launching = frozenset(self._launching)
        found = self.cluster.look()
        launched, forgotten = self._since_listed()
        reports = self._reports()  # after the pods: who has ended has reported before
        self._heard = frozenset(reports)
        world = World(self._health(found.values()), self._now(), self.config.start_timeout_s)
        looks: dict[str, Look] = {}
        parts: list[Observation] = []
        for attempt_id in sorted(found.keys() | self._known.keys()):
            objects = found.get(attempt_id, Objects())
            if attempt_id in forgotten or attempt_id in launched:  # of what was done meanwhile a list may have a part
                continue
            held = self._held(attempt_id, objects)
            told = reports.get(attempt_id, {})
            if held is None and objects.running:
                parts.append(Observation(attempt_id=attempt_id, phase=Phase.STARTING))  # something of it is there
            if held is None or attempt_id in launching:
                continue
            if self._is_cut_short(held, objects, told):
                parts.append(Observation(attempt_id=attempt_id, phase=Phase.STARTING, unfinished=True))
                continue
            seen = look(held, told, world)
            looks[attempt_id] = seen
            if held.known.get("bare"):
                self._bare[attempt_id] = bare.by_task(objects.pods)
            if seen.no_python and attempt_id not in self._anew:
                self._make_bare(held)
            if seen.end is not None:
                self._end(attempt_id, seen.end, float(held.known.get("grace_s", 0)))
            elif held.ending is not None and seen.observation.phase not in (Phase.ENDED, Phase.LOST):
                self._end(attempt_id, held.ending, float(held.known.get("grace_s", 0)))
        self._seen = looks
        new = sorted(launched - launching - forgotten)
        parts += [Observation(attempt_id=attempt_id, phase=Phase.STARTING) for attempt_id in new]
        parts += self._vanished(reports.keys() - found.keys() - self._known.keys() - launching - launched - forgotten)
        return (*(one.observation for one in looks.values()), *parts)

    def _vanished(self, attempt_ids: Iterable[str]) -> list[Observation]:
        """Returns what was heard of and is not there: lost, once a later list shows that, and not to be launched again."""
        now, as_of = self._monotonic(), self.cluster.as_of
        self._gone = {attempt_id: self._gone.get(attempt_id, now) for attempt_id in sorted(attempt_ids)}
        words = "its Secret and all its pods are gone: deleted by hand, or with the namespace"
        return [
            Observation(attempt_id=attempt_id, phase=Phase.LOST, reason=Reason.POD_DELETED, message=words)
            if as_of > noted
            else Observation(attempt_id=attempt_id, phase=Phase.STARTING)
            for attempt_id, noted in self._gone.items()
        ]

    def _since_listed(self) -> tuple[set[str], set[str]]:
        """Returns what was launched and what was forgotten since the newest list was begun."""
        as_of = self.cluster.as_of
        for done in (self._launched, self._forgotten):
            for attempt_id in [one for one, at in tuple(done.items()) if at < as_of]:
                done.pop(attempt_id, None)
        return set(self._launched), set(self._forgotten)

    def stop(self, attempt_id: str, *, grace_s: float, notice: Notice | None = None) -> None:
        """See Executor. A notice reaches the runners by the server, which they ask; in vain, and their pods are deleted."""
        if self._is_ended(attempt_id):
            return
        if notice is not None and attempt_id in self._bare:
            # it has no runner to tell it: SIGTERM is its notice, whatever signal it would have liked
            self._end(attempt_id, Why(Reason.PREEMPTED, ""), max(0.0, notice.within_s))
            return
        if notice is not None:
            over_s = (self._now() - notice.deadline) / SECOND_NS
            if over_s > grace_s + TO_DELIVER_S:
                self._end(attempt_id, Why(Reason.PREEMPTED, "it did not end in the time of its notice"), grace_s)
            return
        asked, now = self._asked.get(attempt_id), self._monotonic()
        if asked is not None and asked.why is None and asked.grace_s <= grace_s and now - asked.at < AGAIN_S:
            return
        said = {STOPPED: json.dumps({"at": self._now(), "grace_s": grace_s})}
        marked = self._mark(attempt_id, said)
        if marked is None and attempt_id not in self._known:
            withdrawn.withdraw(self._api, self.config.settings, attempt_id, said)
        elif marked is None or not withdrawn.is_withdrawn(marked):
            self._delete(attempt_id, grace_s)
            self._asked[attempt_id] = Asked(grace_s, now)

    def forget(self, attempt_id: str) -> None:
        """See Executor."""
        with self._lock:
            if attempt_id in self._launching:
                return
        if not (attempt_id in self._known and self._is_ended(attempt_id)) and self._stays(attempt_id):
            return
        try:
            self._api.delete(core(self.config.settings.namespace, "secrets", attempt_id))
        except Refused as error:
            raise unavailable(error) from error
        self._forgotten[attempt_id] = self._monotonic()
        for kept in (self._known, self._asked, self._seen, self._launched):
            kept.pop(attempt_id, None)
        self._whole.discard(attempt_id)
        self._anew.discard(attempt_id)
        self._forget_output(attempt_id)

    def _is_ended(self, attempt_id: str) -> bool:
        """Whether it was seen that nothing of it runs any more: nothing begins again of what has ended."""
        seen = self._seen.get(attempt_id)
        return seen is not None and seen.observation.phase in (Phase.ENDED, Phase.LOST)

    def _stays(self, attempt_id: str) -> bool:
        """Whether something of it may run, or keeps what runs late from beginning."""
        objects = self.cluster.look().get(attempt_id)
        if objects is None and attempt_id in self._launched:
            return True
        secret = None if objects is None else objects.secret
        if withdrawn.is_withdrawn(secret) if secret else withdrawn.found(self._api, self._spaces, attempt_id):
            return True  # for a while: see _held
        if objects is None:
            return False
        held = self._held(attempt_id, objects)
        if held is None or self._is_cut_short(held, objects, {}):
            return held is None and bool(objects.running)
        world = World(self._health([objects]), self._now(), self.config.start_timeout_s)
        seen = look(held, self._reports().get(attempt_id, {}), world)
        return seen.observation.phase not in (Phase.ENDED, Phase.LOST)

    def open_session(self, attempt_id: str, task: str, request: SessionRequest) -> socket.socket:
        """See Executor."""
        role, _, index = task.rpartition("-")
        objects = self.cluster.look().get(attempt_id, Objects())
        for pod in objects.pods:
            marks = pod["metadata"]["labels"]
            if (marks.get(ROLE), marks.get(INDEX)) != (role, index) or pod["status"].get("phase") != "Running":
                continue
            if manifests.BARE in marks:
                raise NotRunning(
                    f"the image of {task} has no python3: nobody can go in; kubectl exec {pod['metadata']['name']}"
                )
            return entering.enter(self._api, self.config.settings.namespace, pod["metadata"]["name"], task, request)
        raise NotRunning(f"{task} of {attempt_id} does not run now")

    def _make_bare(self, held: Held) -> None:
        """Makes an attempt's Job anew without the runner; whatever of that was done before is gone on with."""
        namespace, attempt_id = self.config.settings.namespace, held.attempt_id
        (task,) = held.known["tasks"]
        name = f"{attempt_id}-{task['role']}"
        try:
            secret = self._api.get(core(namespace, "secrets", attempt_id))
            order = json.loads(base64.b64decode(secret["data"]["order.json"]))
            self._create("jobs", bare.job(self._api.get(batch(namespace, "jobs", name)), order))
            # what is listed after this has the new Job: it is read from the Secret that the old one no longer counts
            self._mark(attempt_id, {TASKS: manifests.packed({**held.known, "bare": True})})
            self._api.delete(batch(namespace, "jobs", name))
            self._anew.add(attempt_id)
        except (Refused, DanluError, ValueError, KeyError) as error:
            LOG.warning("%s cannot be made anew without its runner now: %s", attempt_id, error)
        self.cluster.changed()

    # looking

    def _held(self, attempt_id: str, objects: Objects) -> Held | None:
        """Returns what is held of an attempt; None where its Secret is gone and nothing runs that was known."""
        marks: Mapping[str, Any] = {}
        if objects.secret is not None and withdrawn.is_withdrawn(objects.secret) and attempt_id not in self._known:
            withdrawn.give_up(self._api, self._spaces, objects.secret, self._now())
            return self._orphan(attempt_id, objects)
        if objects.secret is not None:
            meta = objects.secret["metadata"]
            marks = meta.get("annotations") or {}
            text = str(marks.get(TASKS, ""))
            if attempt_id not in self._known or self._known[attempt_id].text != text:
                try:
                    known = manifests.unpacked(text)
                except ValueError as error:
                    LOG.warning("secret %s: %s", attempt_id, error)
                    return None
                self._known[attempt_id] = Known(ns(meta.get("creationTimestamp")) or self._now(), known, text)
            if TASKS in marks and {job["metadata"]["labels"].get(ROLE) for job in objects.jobs} >= _roles(
                self._known[attempt_id].account
            ):
                self._whole.add(attempt_id)
        if attempt_id not in self._known:
            return self._orphan(attempt_id, objects)
        created_at, account, _ = self._known[attempt_id]
        asked = self._asked.get(attempt_id)
        ending = _why(marks.get(ENDING)) or (None if asked is None else asked.why)
        if objects.secret is None and ending is None and STOPPED not in marks and asked is None:
            ending = Why(Reason.POD_DELETED, "its Secret was deleted, and not by Danlu: by hand, or with the namespace")
        patient = self._now() - created_at > POD_PATIENCE_S * SECOND_NS  # what passes is no reason yet
        names = [one["metadata"]["name"] for one in (*objects.jobs, *(objects.pods if patient else ()))]
        waits = len(objects.pods) < len(account["tasks"]) or any(_is_pending(pod) for pod in objects.pods)
        events: dict[str, Any] = {}
        if waits and objects.jobs and self._now() - created_at > PATIENCE_S * SECOND_NS:
            warnings = self.cluster.warnings()
            events = {name: warnings[name] for name in names if name in warnings}
        return Held(
            attempt_id, account, created_at, stopped=STOPPED in marks or (asked is not None and asked.why is None),
            ending=ending, jobs=tuple(objects.jobs), pods=tuple(objects.pods), events=events,
        )  # fmt: skip

    def _orphan(self, attempt_id: str, objects: Objects) -> Held | None:
        """Returns what is left of an attempt of which nobody knows more than that its pods run."""
        running = objects.running
        if not running:
            self._orphans.pop(attempt_id, None)
            return None
        if self._monotonic() - self._orphans.setdefault(attempt_id, self._monotonic()) < ORPHAN_S:
            return None  # lists are made one after the other: its Secret may have been made between them
        tasks: list[Mapping[str, Any]] = [
            {
                "name": f"{pod['metadata']['labels'].get(ROLE)}-{pod['metadata']['labels'].get(INDEX, 0)}",
                "role": pod["metadata"]["labels"].get(ROLE, "main"), "rank": 0, "decides": True, "linger_s": 0,
                "index": int(pod["metadata"]["labels"].get(INDEX, 0)),
            }
            for pod in running
        ]  # fmt: skip
        why = Why(Reason.POD_DELETED, "its Secret was deleted, and not by Danlu: by hand, or with the namespace")
        return Held(attempt_id, {"tasks": tasks}, self._now(), ending=why, pods=tuple(running))

    def _is_cut_short(self, held: Held, objects: Objects, told: Mapping[str, TaskReport]) -> bool:
        """Whether its launch was, by the end of a server or an API that did not answer: it is launched again, or stopped."""
        if held.attempt_id in self._whole or held.stopped or held.ending is not None or told:
            return False
        there = {one["metadata"]["labels"].get(ROLE) for one in (*objects.jobs, *objects.pods)}
        young = self._now() - held.created_at < LAUNCH_S * SECOND_NS
        return young and bool(_roles(held.known) - there)

    def _health(self, every: Iterable[Objects]) -> dict[str, Health]:
        """Returns how the nodes are that pods run on; nothing where none does, or nobody may know."""
        wanted = any(not is_over(pod) and pod["spec"].get("nodeName") for one in every for pod in one.pods)
        if not wanted:
            return {}
        now = self._now()
        return {node["metadata"]["name"]: health(node, now) for node in self.cluster.nodes()}

    # ending

    def _end(self, attempt_id: str, why: Why, grace_s: float) -> None:
        """Ends what is left of an attempt, for a reason that is kept; asked again while it has not ended."""
        asked, now = self._asked.get(attempt_id), self._monotonic()
        if asked is not None and asked.why is not None and now - asked.at < AGAIN_S:
            return
        try:
            if asked is None or asked.why is None:
                said = json.dumps({"reason": why.reason, "message": why.message, "at": self._now()})
                self._mark(attempt_id, {ENDING: said})
            self._delete(attempt_id, grace_s)
        except DanluError as error:
            LOG.warning("what is left of %s cannot be ended now: %s", attempt_id, error.message)
            return
        self._asked[attempt_id] = Asked(grace_s, now, why)

    def _mark(self, attempt_id: str, annotations: Mapping[str, str]) -> Mapping[str, Any] | None:
        """Writes into an attempt's Secret, and returns it if there is one."""
        path = core(self.config.settings.namespace, "secrets", attempt_id)
        try:
            return self._api.patch(path, {"metadata": {"annotations": dict(annotations)}})
        except Refused as error:
            if error.missing:
                return None
            raise unavailable(error) from error

    def _delete(self, attempt_id: str, grace_s: float) -> None:
        """Deletes its pods, which get the grace and the time to deliver, and its Jobs, so that they make no others."""
        namespace, selector = self.config.settings.namespace, f"{ATTEMPT}={attempt_id}"
        most_s = max(1, round(grace_s)) if attempt_id in self._bare else round(grace_s) + TO_DELIVER_S
        try:
            self._api.delete(core(namespace, "pods"), selector=selector, grace_s=most_s)
            self._api.delete(batch(namespace, "jobs"), selector=selector)
        except Refused as error:
            raise unavailable(error) from error
        finally:
            self.cluster.changed()


def _passes(error: Refused) -> bool:
    """Whether what the API refuses now may be taken later: a quota, a namespace that is gone or going."""
    going = TERMINATED in error.message or "exceeded quota" in error.message
    return error.missing or error.status == 409 or (error.status == 403 and going)


def _roles(known: Mapping[str, Any]) -> set[str]:
    return {str(task["role"]) for task in known["tasks"]}


def _is_pending(pod: Mapping[str, Any]) -> bool:
    return bool(pod["status"].get("phase") == "Pending")


def _why(text: object) -> Why | None:
    """Returns why an attempt is ended, as its Secret says; another version's reason is told as a lost runner."""
    if not isinstance(text, str):
        return None
    try:
        said = json.loads(text)
        reason = said["reason"]
        return Why(Reason(reason) if reason in set(Reason) else Reason.RUNNER_LOST, str(said["message"]))
    except (ValueError, KeyError, TypeError):
        return Why(Reason.RUNNER_LOST, "it was ended, and its Secret does not tell why")
