"""From a launch order to an attempt's objects: a Secret that owns the rest, a Service for gangs, a Job a role. Pure."""

from __future__ import annotations

import base64
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from danlu.domain.environments import MOUNTED, PodEnvironment
from danlu.domain.jobs import Task
from danlu.domain.resources import format_bytes
from danlu.domain.specs import TaskSpec
from danlu.errors import LaunchRejected
from danlu.executors.base import LaunchOrder
from danlu.executors.kubernetes.template import PodTemplate
from danlu.executors.orders import Folders, framework_files, order_file, order_text
from danlu.runner.environments_cache import HELD, USES

ATTEMPT, JOB, PROJECT, ROLE, PLATFORM = (
    f"danlu.io/{name}" for name in ("attempt", "job", "project", "role", "platform")
)
BARE: Final = "danlu.io/bare"
"""The label of what runs without the runner."""
TASKS: Final = "danlu.io/tasks"
"""The annotation with what the executor has to know of an attempt's tasks, whatever else of it is gone."""
INDEX: Final = "batch.kubernetes.io/job-completion-index"
INDEX_VARIABLE: Final = "JOB_COMPLETION_INDEX"
"""Kubernetes sets it in every container of an Indexed Job."""
MAX_NAME: Final = 63
MAX_SECRET_BYTES: Final = 1 << 20
MAX_ANNOTATIONS_BYTES: Final = 240_000
LEAST_SHARED_BYTES: Final = 64 << 20
TO_DELIVER_S: Final = 30
"""What a pod gets above its job's grace, to hand over what it has."""
HEARTBEAT_S: Final = 15
HOSTNAME: Final = "kubernetes.io/hostname"
WHERE: Final = Folders(
    Path("/danlu/attempt"), Path("/danlu/checkpoints"), Path("/danlu/runner/runner.pyz"), Path("/danlu/secrets")
)
RUNNER: Final = ("python3", "-I", "-S", "/danlu/runner/runner.pyz", "pod")
ENVIRONMENT, ENVIRONMENTS = "environment", "danlu-environments"
HOST_PATH: Final = "hostPath:"
FETCHING_BYTES: Final = 256 << 20
"""The memory that fetching an environment may take."""
LEAST_CPU_MILLI: Final = 500
"""No container is limited to less: the runner in it, which reads and sends, would take a minute to begin. What is asked of
nodes, counted and billed is what its job asks for.
"""
LOCALHOST: Final = "127.0.0.1"
LAYERS: Final = (
    "separate-user", "no-new-privileges", "mount-namespace", "ipc-namespace", "private-tmp", "hidden-processes", "seccomp",
)  # fmt: skip
"""The layers of isolation that every pod has."""

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PodSettings:
    """What is the same for all pods of a platform.

    Attributes:
        namespace: where everything is made.
        platform: which installation it is: several may share a namespace.
        url: where pods reach the platform.
        image: the image of jobs that name none.
        runner: the name of the ConfigMap with the runner.
        authority: the certificate of the platform's authority in PEM, where it is none that images know.
        gpu_resource: the extended resource that GPUs are.
        gpu_label: the nodes' label that tells a GPU's product.
        gpu_kinds: Danlu's name of a kind -> the products that are meant; empty: a node that does not tell its product.
        uid_base: a project's pods run as this plus the project's number.
        environments: the volume that nodes keep environments in: ``hostPath:/PATH``, ``pvc:NAME`` or ``emptyDir``.
    """

    namespace: str
    platform: str
    url: str
    image: str
    runner: str
    authority: str = ""
    gpu_resource: str = "nvidia.com/gpu"
    gpu_label: str = "nvidia.com/gpu.product"
    gpu_kinds: Mapping[str, Sequence[str]] = field(default_factory=dict)
    uid_base: int = 200_000
    environments: str = "hostPath:/var/lib/danlu/environments"


def labels(order: LaunchOrder, settings: PodSettings, role: str = "") -> dict[str, str]:
    """Returns by what an attempt's objects are found."""
    job = order.job
    found = {ATTEMPT: order.attempt.id, JOB: job.id, PROJECT: job.project, PLATFORM: settings.platform}
    return {**found, ROLE: role} if role else found


def host(attempt_id: str, role: str, index: int) -> str:
    """Returns where the others of a gang find a task."""
    return f"{attempt_id}-{role}-{index}.{attempt_id}"


def secret(order: LaunchOrder, settings: PodSettings) -> Object:
    """Returns the attempt's own object: what its pods are started with, and what the executor has to know of it.

    Raises:
        LaunchRejected: it is larger than Kubernetes keeps.
    """
    data = {"order.json": order_text(content(order, settings)), "token": order.token}
    if settings.authority:
        data["ca.crt"] = settings.authority
    size = sum(len(text.encode()) for text in data.values())
    if size > MAX_SECRET_BYTES:
        raise LaunchRejected(
            f"what its {len(order.attempt.tasks):,} tasks are started with is {format_bytes(size)}, and Kubernetes keeps "
            f"{format_bytes(MAX_SECRET_BYTES)} at most: take fewer tasks, or smaller variables and commands"
        )
    known = packed(tasks(order))
    if len(known) > MAX_ANNOTATIONS_BYTES:
        raise LaunchRejected(f"its {len(order.attempt.tasks):,} tasks are more than Kubernetes keeps an account of")
    return {
        "apiVersion": "v1", "kind": "Secret", "immutable": True,
        "metadata": {
            "name": order.attempt.id, "namespace": settings.namespace, "labels": labels(order, settings),
            "annotations": {TASKS: known},
        },
        "data": {name: base64.b64encode(text.encode()).decode() for name, text in data.items()},
    }  # fmt: skip


def content(order: LaunchOrder, settings: PodSettings) -> Object:
    """Returns the order as the runner in a pod reads it."""
    gang = bool(order.job.spec.roles) and len(order.attempt.tasks) > 1
    attempt_id = order.attempt.id

    def hosts(role: str, index: int) -> str:
        return host(attempt_id, role, index) if gang else LOCALHOST

    order = order.model_copy(update={"url": settings.url})  # this machine's own address is none for a pod
    found = order_file(order, WHERE, hosts)
    for task, asked in zip(found["tasks"], order.job.spec.tasks, strict=True):
        task["devices"] = None  # the device plugin says which ones it has
        task["host_name"] = ""
        if order.interpreter is None and "PATH" not in asked.variables:
            del task["env"]["PATH"]  # the image's own holds
    packed_one = _archived(order)
    found["pod"] = {
        "url": settings.url, "attempt_id": attempt_id, "code": order.job.spec.code,
        "environment": None if packed_one is None else packed_one.order(),
        "heartbeat_s": HEARTBEAT_S, "files": framework_files(order, WHERE, hosts),
    }  # fmt: skip
    return found


def _archived(order: LaunchOrder) -> PodEnvironment | None:
    """Returns the environment that its pods have unpacked, if they need one."""
    found = order.environment
    return None if found is None or found.archive is None else found


def tasks(order: LaunchOrder) -> Object:
    """Returns what the executor has to know of an attempt's tasks to tell what became of them."""
    return {
        "bare": False,
        "secrets": bool(order.secrets),
        "code": order.job.spec.code is not None,
        "grace_s": order.job.spec.grace,
        "limits": limits(order),
        "tasks": [
            {
                **task.model_dump(mode="json", include={"role", "index", "rank", "node", "resources", "devices", "ports"}),
                "decides": asked.decides, "linger_s": asked.linger_s, "name": task.name,
            }
            for task, asked in zip(order.attempt.tasks, order.job.spec.tasks, strict=True)
        ],
    }  # fmt: skip


def limits(order: LaunchOrder) -> list[str]:
    """Returns the layers of isolation that its pods have."""
    asked = order.job.spec.tasks
    return [
        *LAYERS,
        *(["memory-limit"] if all(task.memory_bytes is not None for task in asked) else []),
        *(["cpu-limit"] if all(task.cpu is not None for task in asked) else []),
    ]  # fmt: skip


def packed(known: Object) -> str:
    """Returns it as an annotation's text."""
    return base64.b64encode(zlib.compress(json.dumps(known, separators=(",", ":")).encode(), 9)).decode()


def unpacked(text: str) -> Object:
    """Returns what an annotation's text says.

    Raises:
        ValueError: it is none of ours.
    """
    try:
        found = json.loads(zlib.decompress(base64.b64decode(text, validate=True)))
    except (ValueError, zlib.error, RecursionError) as error:
        raise ValueError(f"the annotation {TASKS} cannot be read: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("tasks"), list):
        raise ValueError(f"the annotation {TASKS} is none of ours")
    return found


def rest(order: LaunchOrder, settings: PodSettings, template: PodTemplate, *, owner_uid: str) -> list[Object]:
    """Returns the objects that the Secret owns, in the order in which they are made.

    Raises:
        LaunchRejected: a name would be too long.
    """
    attempt = order.attempt
    owner = {
        "apiVersion": "v1", "kind": "Secret", "name": attempt.id, "uid": owner_uid, "controller": False,
        "blockOwnerDeletion": False,
    }  # fmt: skip
    found: list[Object] = []
    if len(attempt.tasks) > 1:
        found.append(_service(order, settings, owner))
    by_role: dict[str, list[tuple[Task, TaskSpec]]] = {}
    for task, asked in zip(attempt.tasks, order.job.spec.tasks, strict=True):
        by_role.setdefault(task.role, []).append((task, asked))
    for role, some in by_role.items():
        longest = f"{attempt.id}-{role}-{len(some) - 1}"
        if len(longest) > MAX_NAME:
            raise LaunchRejected(
                f"the pod {longest} would have a name of {len(longest)} characters, and {MAX_NAME} is the most: give the "
                f"role {role} a shorter one"
            )
        found.append(_job(order, settings, template, some, owner))
    return found


def _service(order: LaunchOrder, settings: PodSettings, owner: Object) -> Object:
    return {
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": order.attempt.id, "namespace": settings.namespace, "labels": labels(order, settings),
            "ownerReferences": [owner],
        },
        "spec": {
            "clusterIP": "None", "publishNotReadyAddresses": True, "selector": {ATTEMPT: order.attempt.id},
        },
    }  # fmt: skip


def _job(
    order: LaunchOrder,
    settings: PodSettings,
    template: PodTemplate,
    some: Sequence[tuple[Task, TaskSpec]],
    owner: Object,
) -> Object:
    task, asked = some[0]
    marks = labels(order, settings, task.role)
    spec: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": round(order.job.spec.grace) + TO_DELIVER_S,
        "securityContext": _user(settings.uid_base + order.project_number),
        "containers": [_container(order, settings, asked)],
        "volumes": _volumes(order, settings, task),
    }
    environment = _archived(order)
    if environment is not None:
        pod = f"{order.attempt.id}-{task.role}-$({INDEX_VARIABLE})"
        spec["initContainers"] = [_fetches(settings, pod, asked)]
        spec["containers"][0]["volumeMounts"] += _own(environment, pod)
        spec["volumes"].append(_environments(settings))
    if len(order.attempt.tasks) > 1:
        spec["subdomain"] = order.attempt.id
    affinity = _affinity(order, settings, [one for one, _ in some])
    if affinity:
        spec["affinity"] = affinity
    spread = _spread(order, [one for one, _ in some])
    if spread:
        spec["topologySpreadConstraints"] = spread
    return {
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {
            "name": f"{order.attempt.id}-{task.role}", "namespace": settings.namespace, "labels": marks,
            "ownerReferences": [owner],
        },
        "spec": {
            "completionMode": "Indexed", "completions": len(some), "parallelism": len(some), "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "template": template.merged({"metadata": {"labels": marks}, "spec": spec}),
        },
    }  # fmt: skip


def _user(uid: int) -> Object:
    return {
        "runAsNonRoot": True, "runAsUser": uid, "runAsGroup": uid, "fsGroup": uid,
        "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip


def _container(order: LaunchOrder, settings: PodSettings, asked: TaskSpec) -> Object:
    mounts: list[Object] = [
        {"name": "danlu-attempt", "mountPath": "/danlu/attempt"},
        {"name": "danlu-checkpoints", "mountPath": "/danlu/checkpoints"},
        {"name": "danlu-secrets", "mountPath": "/danlu/secrets"},
        {"name": "danlu-shm", "mountPath": "/dev/shm"},  # noqa: S108 - a path in a pod
        {"name": "danlu-runner", "mountPath": "/danlu/runner", "readOnly": True},
        {"name": "danlu-order", "mountPath": "/danlu/order", "readOnly": True},
    ]
    return {
        "name": "task", "image": _image(order, settings),
        "command": list(RUNNER),
        "env": [{"name": "DANLU_POD_ROLE", "value": asked.role}],
        "resources": _resources(settings, asked),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": mounts,
    }  # fmt: skip


def _image(order: LaunchOrder, settings: PodSettings) -> str:
    own = "" if order.environment is None else order.environment.image
    return own or order.job.spec.image or settings.image


def _fetches(settings: PodSettings, pod: str, asked: TaskSpec) -> Object:
    """Returns what fetches the environment first. Its image is never the job's: what it writes, other jobs run."""
    on_node = settings.environments.startswith(HOST_PATH)
    as_root = {"runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": False} if on_node else {}  # the kubelet makes it root's
    needs = asked.resources
    requests = _resources(settings, asked)["requests"]
    limits = {
        "cpu": f"{max(needs.cpu_milli, LEAST_CPU_MILLI)}m",
        "memory": str(max(needs.memory_bytes, FETCHING_BYTES)),
    }
    return {
        "name": ENVIRONMENT, "image": settings.image, "command": [*RUNNER[:-1], ENVIRONMENT, pod],
        "resources": {"requests": requests, "limits": {**requests, **limits}},
        "securityContext": {
            **as_root, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            {"name": ENVIRONMENTS, "mountPath": MOUNTED},
            {"name": "danlu-attempt", "mountPath": "/danlu/attempt"},
            {"name": "danlu-runner", "mountPath": "/danlu/runner", "readOnly": True},
            {"name": "danlu-order", "mountPath": "/danlu/order", "readOnly": True},
        ],
    }  # fmt: skip


def _own(environment: PodEnvironment, pod: str) -> list[Object]:
    """Returns what a job sees of its node's environments: its own and the file of its own pod that keeps that there. Others'
    are not for it to read, nor is any lock for it that others have to take: whoever can open one can hold it.
    """
    own, held = environment.digest, f"{USES}/{environment.digest}/{pod}"
    return [
        {"name": ENVIRONMENTS, "mountPath": f"{MOUNTED}/{own}", "subPath": own, "readOnly": True},
        {"name": ENVIRONMENTS, "mountPath": f"{MOUNTED}/{HELD}", "subPathExpr": held, "readOnly": True},
    ]


def _environments(settings: PodSettings) -> Object:
    kind, _, where = settings.environments.partition(":")
    if kind == "hostPath":
        return {"name": ENVIRONMENTS, "hostPath": {"path": where, "type": "DirectoryOrCreate"}}
    if kind == "pvc":
        return {"name": ENVIRONMENTS, "persistentVolumeClaim": {"claimName": where}}
    return {"name": ENVIRONMENTS, "emptyDir": {}}


def _resources(settings: PodSettings, asked: TaskSpec) -> Object:
    needs = asked.resources
    requests: dict[str, str] = {"cpu": f"{needs.cpu_milli}m"}
    most: dict[str, str] = {}
    if needs.memory_bytes:
        requests["memory"] = most["memory"] = str(needs.memory_bytes)
    if asked.cpu is not None:
        most["cpu"] = f"{max(needs.cpu_milli, LEAST_CPU_MILLI)}m"
    if needs.gpus:
        requests[settings.gpu_resource] = most[settings.gpu_resource] = str(needs.gpus)
    return {"requests": requests, **({"limits": most} if most else {})}


def _volumes(order: LaunchOrder, settings: PodSettings, task: Task) -> list[Object]:
    shared = max(LEAST_SHARED_BYTES, task.resources.memory_bytes // 2)
    return [
        {"name": "danlu-attempt", "emptyDir": {}},
        {"name": "danlu-checkpoints", "emptyDir": {}},
        {"name": "danlu-secrets", "emptyDir": {"medium": "Memory", "sizeLimit": str(16 << 20)}},
        {"name": "danlu-shm", "emptyDir": {"medium": "Memory", "sizeLimit": str(shared)}},
        {"name": "danlu-runner", "configMap": {"name": settings.runner}},
        {"name": "danlu-order", "secret": {"secretName": order.attempt.id, "defaultMode": 0o440}},
    ]


def _affinity(order: LaunchOrder, settings: PodSettings, some: Sequence[Task]) -> Object:
    """Returns on which nodes the pods of a role belong: the kind of GPU as asked, Danlu's plan if there is room."""
    found: Object = {}
    kind = order.job.spec.gpu_kind
    if kind is not None and any(task.resources.gpus for task in some):
        products = settings.gpu_kinds.get(kind, [kind])
        told = [product for product in products if product]
        ways: list[Object] = [{"operator": "In", "values": told}] if told else []
        ways += [{"operator": "DoesNotExist"}] if "" in products else []
        terms = [{"matchExpressions": [{"key": settings.gpu_label, **way}]} for way in ways]
        found["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": terms}
    planned = sorted({task.node for task in some if task.node})
    if planned:
        term = {"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": planned}]}
        found["preferredDuringSchedulingIgnoredDuringExecution"] = [{"weight": 100, "preference": term}]
    return {"nodeAffinity": found} if found else {}


def _spread(order: LaunchOrder, some: Sequence[Task]) -> list[Object]:
    """Returns that a role's pods spread over nodes as evenly as the plan has them: a Job has one template for all of them."""
    counts = Counter(task.node for task in some)
    if len(counts) < 2:
        return []
    skew = max(1, max(counts.values()) - min(counts.values()))
    return [
        {
            "maxSkew": skew, "topologyKey": HOSTNAME, "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {ATTEMPT: order.attempt.id, ROLE: some[0].role}},
        }
    ]  # fmt: skip


def config_map(settings: PodSettings, runner: bytes) -> Object:
    """Returns the object with the runner; its name is of its content, so it never changes."""
    return {
        "apiVersion": "v1", "kind": "ConfigMap", "immutable": True,
        "metadata": {
            "name": settings.runner, "namespace": settings.namespace, "labels": {PLATFORM: settings.platform},
        },
        "binaryData": {"runner.pyz": base64.b64encode(runner).decode()},
    }  # fmt: skip
