"""What the cluster holds of a platform: listed by label, which is the truth; a watch only says when to list again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from danlu.errors import DanluError, ExecutorUnavailable
from danlu.executors.kubernetes import reasons
from danlu.executors.kubernetes.client import Api, Keep, Refused, batch, core
from danlu.executors.kubernetes.manifests import ATTEMPT, PLATFORM
from danlu.executors.kubernetes.nodes import OVER

LOG: Final = logging.getLogger("danlu.executors")
RELIST_S: Final = 10.0
"""So often everything is listed though the watch tells of no change."""
UNWATCHED_S: Final = 1.0
NODES_S: Final = 10.0
EVENTS_S: Final = 2.0
WATCH_PAUSES_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
SHARE: Final = 2.0
"""A list is made again only after so many times as long as the last one took."""

Object = dict[str, Any]


@dataclass(slots=True)
class Objects:
    """What belongs to one attempt."""

    secret: Object | None = None
    jobs: list[Object] = field(default_factory=list)
    pods: list[Object] = field(default_factory=list)

    @property
    def running(self) -> list[Object]:
        """The pods that run, or may yet."""
        return [pod for pod in self.pods if not is_over(pod) and reasons.terminated(pod) is None]


class Cluster:
    """The platform's objects, by attempt. Any thread may use it."""

    def __init__(
        self, api: Api, namespace: str, platform: str, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Asks nothing yet."""
        self.api, self.namespace, self.monotonic = api, namespace, monotonic
        self.selector = f"{PLATFORM}={platform}"
        self._lock, self._asking = threading.Lock(), threading.Lock()
        self._found: dict[str, Objects] = {}
        self._listed_at: float | None = None
        self.as_of = 0.0
        """when the newest list was begun (monotonic): what was done before is in it"""
        self._took_s = 0.0
        self._changed = True
        self._watching = False
        self._version = ""
        self._nodes: tuple[float, list[Object]] | None = None
        self._events: tuple[float, dict[str, list[Object]]] | None = None

    def changed(self) -> None:
        """Says that what was listed is no longer so: the next look lists again."""
        self._changed = True

    def look(self) -> dict[str, Objects]:
        """Returns what there is, by attempt.

        Raises:
            ExecutorUnavailable: the API does not answer.
        """
        with self._lock:
            now = self.monotonic()
            if self._listed_at is None or self._is_due(now - self._listed_at):
                self._changed = False  # before the list: what changes meanwhile is listed again
                try:
                    self._list()
                except BaseException:
                    self._changed = True
                    raise
                self._listed_at, self.as_of = self.monotonic(), now
                self._took_s = self._listed_at - now
            return self._found

    def _is_due(self, since_s: float) -> bool:
        if self._changed:
            return since_s >= min(SHARE * self._took_s, RELIST_S)
        return since_s >= (RELIST_S if self._watching else UNWATCHED_S)

    def _list(self) -> None:
        """Lists; the pods last: what owns them is there by then."""
        found: dict[str, Objects] = {}
        for kind, path, metadata in (
            ("secret", core(self.namespace, "secrets"), True), ("job", batch(self.namespace, "jobs"), False),
            ("pod", core(self.namespace, "pods"), False),
        ):  # fmt: skip
            items, version = self._all(
                path, marks if metadata else trimmed, metadata=metadata, labelSelector=self.selector
            )
            for item in items:
                attempt_id = (item["metadata"].get("labels") or {}).get(ATTEMPT)
                if not attempt_id:
                    continue
                one = found.setdefault(attempt_id, Objects())
                if kind == "secret":
                    one.secret = item
                else:
                    (one.jobs if kind == "job" else one.pods).append(item)
            self._version = version
        self._found = found

    def nodes(self) -> list[Object]:
        """Returns the cluster's nodes, as they were at most some seconds ago."""
        with self._asking:  # many may ask at once: one of them lists
            now = self.monotonic()
            if self._nodes is None or now - self._nodes[0] >= NODES_S:
                self._nodes = now, self._all(core("", "nodes"), trimmed)[0]
            return self._nodes[1]

    def everybodys_pods(self) -> list[Object]:
        """Returns what others' pods of the cluster take, or where that is not allowed those of the namespace."""
        running = "status.phase!=Succeeded,status.phase!=Failed"
        try:
            return self.api.list_all(core("", "pods"), self._others, fieldSelector=running)[0]
        except Refused as error:
            if error.status != 403:
                raise unavailable(error) from error
            return self._all(core(self.namespace, "pods"), self._others)[0]

    def _others(self, pod: Object) -> Object | None:
        meta = pod["metadata"]
        label = f"{PLATFORM}={(meta.get('labels') or {}).get(PLATFORM)}"
        if (meta.get("namespace"), label) == (self.namespace, self.selector):
            return None
        return {part: _some(pod.get(part) or {}, names) for part, names in TAKEN.items()}

    def warnings(self) -> dict[str, list[Object]]:
        """Returns the namespace's warnings by the name of what they are about, as they were some seconds ago."""
        with self._asking:
            now = self.monotonic()
            if self._events is None or now - self._events[0] >= EVENTS_S:
                found: dict[str, list[Object]] = {}
                for event in self._all(core(self.namespace, "events"), whole, fieldSelector="type=Warning")[0]:
                    found.setdefault(str((event.get("involvedObject") or {}).get("name")), []).append(event)
                self._events = now, found
            return self._events[1]

    def _all(self, path: str, keep: Keep, *, metadata: bool = False, **selectors: str) -> tuple[list[Object], str]:
        try:
            return self.api.list_all(path, keep, metadata=metadata, **selectors)
        except Refused as error:
            raise unavailable(error) from error

    # the watch

    def watch(self, stopping: threading.Event, hint: Callable[[], None]) -> None:
        """Calls ``hint`` whenever a pod changes, until it is stopped. It may miss some: it only shortens a wait."""
        failures = 0
        while not stopping.is_set():
            try:
                self.look()
                for event in self.api.watch(core(self.namespace, "pods"), self._version, labelSelector=self.selector):
                    self._watching, failures = True, 0
                    self._version = str(event["object"]["metadata"].get("resourceVersion") or self._version)
                    self.changed()
                    hint()
                    if stopping.is_set():
                        return
                self._watching = True  # it was ended by the API, in good order
            except (DanluError, Refused) as error:
                self._watching = False
                self.changed()
                LOG.debug("watch: %s", error)
                stopping.wait(WATCH_PAUSES_S[min(failures, len(WATCH_PAUSES_S) - 1)])
                failures += 1
            except Exception:
                self._watching = False
                LOG.exception("the watch of pods failed: it is begun again")
                stopping.wait(WATCH_PAUSES_S[-1])


def is_over(pod: Object) -> bool:
    """Whether all that a pod had to do is done, or failed."""
    return pod["status"].get("phase") in OVER


def unavailable(error: Refused) -> ExecutorUnavailable:
    """Returns that the API refuses what the platform needs."""
    return ExecutorUnavailable(
        f"the cluster refuses what the platform needs ({error.status} {error.reason}): {error.message}",
        next_step="look at the platform's role there: kubectl auth can-i --list --as=system:serviceaccount:NAMESPACE:NAME",
    )


TAKEN: Final = {
    "metadata": ("namespace", "labels"), "spec": ("nodeName", "containers", "initContainers", "overhead"),
    "status": ("phase",),
}  # fmt: skip
KEPT: Final = {
    "metadata": ("name", "namespace", "uid", "labels", "creationTimestamp", "deletionTimestamp"),
    "spec": ("nodeName", "taints", "unschedulable", "parallelism"),
    "status": (
        "phase", "reason", "message", "conditions", "containerStatuses", "initContainerStatuses", "allocatable", "nodeInfo",
        "active", "failed", "succeeded",
    ),
}  # fmt: skip


def whole(item: Object) -> Object:
    """Returns all of an object."""
    return item


def marks(item: Object) -> Object:
    """Returns of an object what it is called, and what was written on it."""
    return {"metadata": _some(item["metadata"], ("name", "uid", "labels", "annotations", "creationTimestamp"))}


def trimmed(item: Object) -> Object:
    """Returns of an object what is looked at: thousands are kept in memory."""
    return {part: _some(item.get(part) or {}, names) for part, names in KEPT.items()}


def _some(part: Object, names: Iterable[str]) -> Object:
    return {name: part[name] for name in names if name in part}
