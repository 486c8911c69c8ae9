"""From what the cluster holds of an attempt, and what its runners report, to an observation, and what has to end. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from danlu.domain.jobs import Reason, Task
from danlu.domain.reports import TaskReport
from danlu.executors import told
from danlu.executors.base import Observation, Phase
from danlu.executors.kubernetes import bare, reasons
from danlu.executors.kubernetes.manifests import BARE, INDEX, ROLE
from danlu.executors.kubernetes.nodes import OVER, Health
from danlu.executors.kubernetes.quantities import SECOND_NS, ns
from danlu.executors.kubernetes.reasons import Why
from danlu.runner import gang

Object = Mapping[str, Any]
HEARD_S: Final = 15.0
"""How long runners have to hear from the server that their gang is over, before their pods are deleted."""
FIRST_WORD_S: Final = 60.0
"""How long a runner has to be heard first, after the last moment at which its pod may have begun."""
SIGKILL, SIGTERM, NOT_FOUND = 9, 15, 127
NO_REPORT: Final = TaskReport()


@dataclass(frozen=True, slots=True)
class Held:
    """What the cluster has of one attempt.

    Attributes:
        known: what its Secret says of its tasks (see manifests.tasks).
        created_at: ns UTC; when it was launched.
        stopped: somebody asked for its end.
        ending: why the platform ends it, and in which words, where it does.
        events: the cluster's warnings, by the name of the pod or Job that they are of.
    """

    attempt_id: str
    known: Mapping[str, Any]
    created_at: int
    stopped: bool = False
    ending: Why | None = None
    jobs: tuple[Object, ...] = ()
    pods: tuple[Object, ...] = ()
    events: Mapping[str, Sequence[Object]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class World:
    """What else an observation is made of: the nodes' health by name, the time, how long a start may take."""

    nodes: Mapping[str, Health]
    now: int
    start_timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Look:
    """What is seen of an attempt, and why what is left of it has to be ended now, if it has."""

    observation: Observation
    end: Why | None = None
    """``reason`` is COMPLETED where its own result ends it."""
    no_python: bool = False
    """Its image has none: it is to be made anew without the runner."""


@dataclass(slots=True)
class Member:
    """One task: as ordered, its pod, what was reported of it."""

    spec: Mapping[str, Any]
    pod: Object | None
    status: told.Status
    saved: Mapping[str, Any] | None
    task: Task
    runs: bool
    seen_at: int | None = None
    lost: Why | None = None

    @property
    def over(self) -> bool:
        """Whether its own end is known: not where its runner was killed."""
        told = self.task.exit_code is not None or self.task.signal is not None or self.task.ended_at is not None
        return told and not self.killed

    @property
    def killed(self) -> bool:
        """Whether its pod tells that the runner in it was."""
        exited = self.status.of(str(self.spec["name"])).exited
        return bool(exited.get("lost") or (self.status.ended or {}).get("lost"))


def look(held: Held, reports: Mapping[str, TaskReport], world: World) -> Look:
    """Returns what is seen of an attempt: ended or lost only where nothing of it runs any more."""
    members = _members(held, reports, world)
    without = [one for one in members if one.pod is not None and not one.over and reasons.has_no_python(one.pod)]
    if without and not held.known.get("bare") and not held.stopped and held.ending is None:
        refused = bare.why_not(held.known)
        if not refused:
            return Look(_observation(held, members, Phase.STARTING, None), no_python=True)
        for one in without:
            one.task = one.task.model_copy(update={"exit_code": NOT_FOUND, "ended_at": world.now, "error": refused})
    known_at = gang.known_at(_gang(members))
    running = [one for one in members if one.runs]
    started = min((one.task.started_at for one in members if one.task.started_at is not None), default=None)
    lost = held.ending
    if lost is None and known_at is None and not held.stopped:
        lost = next((one.lost for one in members if one.lost is not None), None)
    if running or _may_make_pods(held, members):
        late = None
        if lost is None and known_at is None and not held.stopped:
            late = _late(held, members, world)
        end = (lost or late) if held.ending is None else None
        if end is None and not held.stopped and held.ending is None and _gang_over(held, members, world):
            end = Why(Reason.COMPLETED, "its result is known")
        phase = Phase.STARTING if started is None else Phase.RUNNING
        why = held.ending or _waits(held, members) if started is None else held.ending
        return Look(_observation(held, members, phase, why), end)
    return Look(_over(held, members, lost, known=known_at is not None))


def _members(held: Held, reports: Mapping[str, TaskReport], world: World) -> list[Member]:
    pods: dict[tuple[str, int], Object] = {}
    for one in sorted(held.pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", ""))):
        marks = one["metadata"].get("labels") or {}
        if held.known.get("bare") and BARE not in marks:
            continue  # what it stands in the place of
        if ROLE in marks and str(marks.get(INDEX, "")).isdecimal():
            pods[str(marks[ROLE]), int(marks[INDEX])] = one
    finished = {str((job["metadata"].get("labels") or {}).get(ROLE)): _is_finished(job) for job in _jobs(held)}
    found = []
    for spec in held.known["tasks"]:
        report = reports.get(str(spec["name"]), NO_REPORT)
        status, task = _told(spec, report)
        pod = pods.get((str(spec["role"]), int(spec["index"])))
        node = Health() if pod is None else _health(pod, world)
        runs = pod is not None and not node.lost and _phase(pod) not in OVER and reasons.terminated(pod) is None
        member = Member(
            spec, pod, status, None if report.saved is None else report.saved.model_dump(), task, runs, report.seen_at
        )
        if not member.over and pod is not None:
            member.task = _by_container(task, pod, heard=bool(report.events), alone=bool(held.known.get("bare")))
        if not member.over or (task.stopped and (status.ended or {}).get("evicted")):
            member.lost = _lost(member, node, gone=finished.get(str(spec["role"]), True))
        found.append(member)
    return found


def _told(spec: Mapping[str, Any], report: TaskReport) -> tuple[told.Status, Task]:
    """Returns what is reported of a task; nothing where it cannot be so: its job has made that up, and harms nobody else."""
    status = told.Status(event for event in report.events if isinstance(event.get("event"), str))
    try:
        return status, told.task(spec, status.of(str(spec["name"])))
    except (ValueError, TypeError):
        return told.Status(), told.task(spec, told.Told())


def _health(pod: Object, world: World) -> Health:
    name = pod.get("spec", {}).get("nodeName")
    if not name or not world.nodes:
        return Health()
    return world.nodes.get(name) or Health(True, f"node {name} is no longer part of the cluster")


def _by_container(task: Task, pod: Object, *, heard: bool, alone: bool) -> Task:
    """Returns a task with what its container tells, where no runner has told it."""
    status = pod.get("status", {})
    changes: dict[str, Any] = {}
    if alone:
        for container in status.get("containerStatuses") or []:
            state = container.get("state") or {}
            began = ns(((state.get("running") or state.get("terminated")) or {}).get("startedAt"))
            changes["started_at"] = began
    ended = reasons.terminated(pod)
    if ended is None or reasons.lost(pod) is not None:
        return task.model_copy(update=changes)
    code, at = int(ended.get("exitCode") or 0), ns(ended.get("finishedAt"))
    if ended.get("reason") == "OOMKilled":
        changes |= {"oom": True, "signal": SIGKILL, "ended_at": at, "error": "killed by the kernel for lack of memory"}
    elif alone and ended.get("reason") == "StartError":
        changes |= {"exit_code": 127, "ended_at": at, "error": str(ended.get("message") or "")[:4096]}
    elif alone and code in (128 + SIGKILL, 128 + SIGTERM):
        changes |= {"signal": code - 128, "ended_at": at}
    elif alone or (code == 0 and heard):
        changes |= {"exit_code": min(255, code), "ended_at": at, "last_lines": str(ended.get("message") or "")[:4096]}
    return task.model_copy(update=changes)


def _lost(member: Member, node: Health, *, gone: bool) -> Why | None:
    """Returns how a task was lost that has not ended by itself; ``gone``: its Job makes no pods any more."""
    pod, name = member.pod, member.spec["name"]
    ended = member.status.ended
    if ended is not None and ended.get("evicted"):
        told_why = None if pod is None else reasons.lost(pod)
        return told_why or Why(
            Reason.POD_DELETED, f"the pod of {name} was deleted, and not by Danlu: by hand, or as its node was drained"
        )
    if member.killed:
        if member.runs:
            return None  # what it had written is still being kept
        return Why(Reason.RUNNER_LOST, f"the runner of {name} was killed; everything it had written was kept")
    if pod is None:
        return Why(Reason.POD_DELETED, f"the pod of {name} is gone, and nothing tells how it ended") if gone else None
    if node.lost:
        return Why(Reason.NODE_LOST, node.why)
    found = reasons.lost(pod)
    if found is not None:
        return found
    ended = reasons.terminated(pod)
    if (_phase(pod) in OVER or ended is not None) and not reasons.has_no_python(pod):
        code = None if ended is None else ended.get("exitCode")
        return Why(
            Reason.RUNNER_LOST, f"the runner of {name} ended with exit code {code}, and has not told how its task did"
        )
    return None


def _gang(members: Iterable[Member]) -> list[gang.Member]:
    """Returns the gang as its rule sees it: what was ended by somebody has not ended by itself."""
    found = []
    for one in members:
        task = one.task
        own = one.over and not task.stopped
        failed = own and task.exit_code != 0
        at = (task.ended_at or 0) / SECOND_NS if own else None
        found.append(gang.Member(bool(one.spec["decides"]), float(one.spec["linger_s"]), at, failed))
    return found


def _gang_over(held: Held, members: Sequence[Member], world: World) -> bool:
    """Whether what is left of a gang has to be ended: its runners have had the time to do so themselves."""
    end_s = gang.end_at(_gang(members))
    if end_s is None or not any(one.runs and not one.over for one in members):
        return False
    patience_s = 0.0 if held.known.get("bare") else HEARD_S + float(held.known.get("grace_s", 0))
    return world.now >= (end_s + patience_s) * SECOND_NS


def _may_make_pods(held: Held, members: Iterable[Member]) -> bool:
    """Whether a Job may still make a pod that is not there yet."""
    open_roles = {
        str((job["metadata"].get("labels") or {}).get(ROLE))
        for job in _jobs(held)
        if not _is_finished(job) and not job["metadata"].get("deletionTimestamp")
    }
    return any(one.pod is None and not one.over and str(one.spec["role"]) in open_roles for one in members)


def _jobs(held: Held) -> list[Object]:
    """Returns its Jobs: where it runs without the runner, those alone that do."""
    wanted = bool(held.known.get("bare"))
    return [job for job in held.jobs if (BARE in (job["metadata"].get("labels") or {})) is wanted]


def _is_finished(job: Object) -> bool:
    conditions = job.get("status", {}).get("conditions") or []
    return any(one.get("type") in ("Complete", "Failed") and one.get("status") == "True" for one in conditions)


def _late(held: Held, members: Sequence[Member], world: World) -> Why | None:
    """Returns that not all of it runs in time, and what keeps it."""
    if world.now - held.created_at < world.start_timeout_s * SECOND_NS:
        return None
    waiting = [one for one in members if not one.over and (one.pod is None or _phase(one.pod) == "Pending")]
    if not waiting:
        return _silent(held, members, world)
    why = _waits(held, members)
    words = f"{len(waiting)} of {len(members)} pods did not run within {world.start_timeout_s:.0f} s"
    return Why(Reason.START_TIMEOUT, f"{words}: {why.message}" if why else words)


def _silent(held: Held, members: Iterable[Member], world: World) -> Why | None:
    """Returns that a pod runs whose runner was never heard: it may not reach the platform at all."""
    if held.known.get("bare") or world.now - held.created_at < (world.start_timeout_s + FIRST_WORD_S) * SECOND_NS:
        return None
    one = next((one for one in members if one.runs and one.seen_at is None), None)
    if one is None:
        return None
    words = f"the runner of {one.spec['name']} was never heard: can its pod reach DANLU_POD_URL of the server?"
    return Why(Reason.START_TIMEOUT, words)


def _phase(pod: Object) -> str:
    return str(pod.get("status", {}).get("phase", ""))


def _waits(held: Held, members: Iterable[Member]) -> Why | None:
    """Returns what keeps the first of those that do not run yet."""
    for one in members:
        if one.pod is not None:
            found = reasons.not_running(one.pod, held.events.get(one.pod["metadata"]["name"], ()))
            if found is not None:
                return found
    for job in held.jobs:
        found = reasons.not_created(held.events.get(job["metadata"]["name"], ()))
        missing = any(one.pod is None for one in members)
        if found is not None and missing:
            return found
    return None


def _over(held: Held, members: Sequence[Member], lost: Why | None, *, known: bool) -> Observation:
    """Returns how an attempt ended of which nothing runs any more."""
    left = [one for one in members if not one.over]
    own = lost is not None and lost.reason in (Reason.COMPLETED, Reason.PREEMPTED)  # its result, or making way
    if lost is not None and not own and not (held.stopped and held.ending is None):
        return _observation(held, members, Phase.LOST, lost)
    if left and not (held.stopped or known or lost is not None):
        names = ", ".join(str(one.spec["name"]) for one in left[:3])
        why = Why(Reason.RUNNER_LOST, f"nothing runs of it any more, and nothing tells how {names} ended")
        return _observation(held, members, Phase.LOST, why)
    for one in left:
        one.task = one.task.model_copy(update={"stopped": True})
    return _observation(held, members, Phase.ENDED, None)


def _observation(held: Held, members: Sequence[Member], phase: Phase, why: Why | None) -> Observation:
    over = phase in (Phase.ENDED, Phase.LOST)
    started = min((one.task.started_at for one in members if one.task.started_at is not None), default=None)
    ends = [one.status.ended for one in members if one.status.ended is not None]
    at = [one.task.ended_at for one in members if one.task.ended_at is not None]
    at += [ended["at"] for ended in ends if type(ended.get("at")) is int]
    saved = max((one.saved for one in members if one.saved is not None), key=lambda said: said["at"], default=None)
    by_runners = any(ended.get("stopped") for ended in ends) and gang.known_at(_gang(members)) is None
    made_way = held.ending is not None and held.ending.reason is Reason.PREEMPTED
    preempted = made_way or any(ended.get("preempted") for ended in ends)
    heard = [one.seen_at for one in members if one.seen_at is not None]
    words = next((str(ended["message"]) for ended in ends if ended.get("message")), "")
    stopped = held.stopped or (by_runners and not preempted)
    return Observation(
        attempt_id=held.attempt_id,
        phase=phase,
        tasks=() if started is None and not any(one.over for one in members) else tuple(one.task for one in members),
        started_at=started,
        ended_at=max(at, default=None) if over else None,
        stopped=over and stopped,
        timed_out=over and any(ended.get("timed_out") for ended in ends),
        preempted=over and preempted,
        **told.checkpoint(saved),
        limits=tuple(str(name) for name in held.known.get("limits", ())),
        resumed_from=next((one.status.resumed_from for one in members if one.status.resumed_from), None),
        reason=None if why is None else why.reason,
        seen_at=max(heard, default=None) if phase is Phase.LOST else None,
        message=((why.message if why is not None else "") or words)[:4096],
    )
