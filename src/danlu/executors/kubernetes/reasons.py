"""What Kubernetes says of pods and Jobs, as reasons of ours: why one does not run yet, and how one was lost. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from danlu.domain.jobs import Reason

Object = Mapping[str, Any]
MESSAGE_CHARACTERS: Final = 1000


class Why(NamedTuple):
    """A reason and its words."""

    reason: Reason
    message: str


PULLING: Final = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable",
     "ImageInspectError", "SignatureValidationFailed"}
)  # fmt: skip
"""Why the kubelet has no image (kubernetes/pkg/kubelet/images)."""
NOT_MADE: Final = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError", "PreStartHookError",
     "PostStartHookError"}
)  # fmt: skip
NODE_GONE: Final = frozenset({"DeletionByTaintManager", "DeletionByPodGC", "NodeLost"})
EVICTED: Final = frozenset(
    {"EvictionByEvictionAPI", "PreemptionByScheduler", "TerminationByKubelet", "Evicted", "Preempted"}
)
NODE_ENDS: Final = frozenset({"NodeShutdown", "Terminated", "Shutdown"})
WARNINGS: Final = frozenset({"FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox", "NetworkNotReady"})
"""Events of a pod that tell why it is not ready; what else keeps it is in its status."""
BACK_OFF: Final = re.compile(r'^Back-off pulling image "[^"]*"(?:: (?:ErrImagePull|ImagePullBackOff))?:? ?')
NOT_CREATED: Final = frozenset({"FailedCreate"})
NO_PYTHON: Final = "python3"


def not_running(pod: Object, events: Iterable[Object] = ()) -> Why | None:
    """Returns what keeps a pod from running, if anything does; ``events`` are the cluster's warnings of it."""
    status = pod.get("status", {})
    if status.get("phase") != "Pending":
        return None
    scheduled = _condition(pod, "PodScheduled")
    if scheduled is not None and scheduled.get("status") == "False":
        if scheduled.get("reason") in ("Unschedulable", "SchedulingGated"):
            return Why(Reason.UNSCHEDULABLE, _words("Kubernetes finds no node for", pod, scheduled.get("message")))
        return Why(Reason.POD_NOT_READY, _words("Kubernetes does not place", pod, scheduled.get("message")))
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        if (container.get("state") or {}).get("running"):
            return Why(Reason.LAUNCHING, f"its environment is being fetched to {_node(pod)}")
        waiting = (container.get("state") or {}).get("waiting") or {}
        code, said = waiting.get("reason"), waiting.get("message")
        if code in PULLING:
            image = container.get("image") or "its image"
            cause = BACK_OFF.sub("", str(said or "")) or said or code  # it says so each second time, and means the same
            return Why(Reason.IMAGE_PULL_FAILED, _cut(f"{image} cannot be pulled on {_node(pod)}: {cause}"))
        if code in NOT_MADE:
            return Why(Reason.POD_NOT_READY, _words(f"{code}: the container cannot be made of", pod, said))
    warning = _newest(event for event in events if event.get("reason") in WARNINGS)
    if warning is not None:
        said = f"{warning.get('reason')}: {warning.get('message')}"
        return Why(Reason.POD_NOT_READY, _words("something keeps from starting", pod, said))
    return None


def not_created(events: Iterable[Object]) -> Why | None:
    """Returns why a Job's pods are not even made, if its events tell: a quota, a webhook, a security policy."""
    newest = _newest(event for event in events if event.get("reason") in NOT_CREATED)
    if newest is None:
        return None
    return Why(Reason.POD_REFUSED, _cut(f"the cluster refuses its pods: {newest.get('message')}"))


def lost(pod: Object) -> Why | None:
    """Returns why a pod will not end by itself, or has not: evicted, deleted, refused by its node; None: nothing of that."""
    meta, status = pod["metadata"], pod.get("status", {})
    disrupted = _condition(pod, "DisruptionTarget")
    code = str((disrupted or {}).get("reason") or "") if (disrupted or {}).get("status") == "True" else ""
    said = (disrupted or {}).get("message") if code else status.get("message")
    code = code or str(status.get("reason") or "")
    if code in NODE_GONE:
        return Why(Reason.NODE_LOST, _words("the node is gone that ran", pod, said))
    if code in EVICTED:
        return Why(Reason.EVICTED, _words("Kubernetes evicted", pod, said or code))
    if code in NODE_ENDS:
        return Why(Reason.NODE_LOST, _words("the node was shut down that ran", pod, said))
    for container in status.get("initContainerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode"):
            words = (
                f"its environment could not be fetched to {_node(pod)}: {ended.get('message') or ended.get('reason')}"
            )
            return Why(Reason.RUNNER_LOST, _cut(words))
    if meta.get("deletionTimestamp"):
        return Why(Reason.POD_DELETED, f"pod {meta['name']} was deleted, and not by Danlu")
    if status.get("phase") == "Failed" and not status.get("containerStatuses") and code:
        return Why(Reason.EVICTED, _words(f"{code}: the node refused", pod, said))
    return None


def terminated(pod: Object) -> Object | None:
    """Returns how the pod's container ended, if it has."""
    for container in pod.get("status", {}).get("containerStatuses") or []:
        state = container.get("state") or {}
        if state.get("terminated"):
            found: Object = state["terminated"]
            return found
    return None


def has_no_python(pod: Object) -> bool:
    """Whether the pod's image has no ``python3``: its container could not even be started."""
    for container in pod.get("status", {}).get("containerStatuses") or []:
        state = container.get("state") or {}
        for one in (state.get("terminated") or {}, state.get("waiting") or {}):
            said = str(one.get("message") or "")
            refused = one.get("reason") in (
                "StartError",
                "ContainerCannotRun",
                "RunContainerError",
                "CreateContainerError",
            )
            if refused and NO_PYTHON in said and ("not found" in said or "no such file" in said):
                return True
    return False


def _condition(pod: Object, kind: str) -> Object | None:
    conditions = pod.get("status", {}).get("conditions") or []
    return next((one for one in conditions if one.get("type") == kind), None)


def _node(pod: Object) -> str:
    return str(pod.get("spec", {}).get("nodeName") or "its node")


def _newest(events: Iterable[Object]) -> Object | None:
    return max(events, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""), default=None)


def _words(what: str, pod: Object, said: object) -> str:
    return _cut(f"{what} pod {pod['metadata']['name']}: {said or 'it does not say why'}")


def _cut(text: str) -> str:
    return text[:MESSAGE_CHARACTERS]
