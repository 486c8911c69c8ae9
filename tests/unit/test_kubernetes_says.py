"""What Kubernetes says of nodes and pods, and what is made of it: tables, with texts as real clusters have them."""

from __future__ import annotations

from typing import Any

import pytest

from danlu.domain.jobs import Reason
from danlu.executors.kubernetes import nodes, quantities, reasons
from danlu.executors.kubernetes.manifests import PodSettings
from danlu.executors.kubernetes.spools import Taken, pieces, resumed
from tests.factories import GIB, SECOND

AT = 1_700_000_000 * SECOND
SETTINGS = PodSettings(
    namespace="jobs", platform="danlu", url="http://x", image="x", runner="x", gpu_kinds={"h100": ("NVIDIA-H100-PCIe",)}
)


def pod(
    phase: str = "Pending", *, state: dict[str, Any] | None = None, deleted: bool = False, **status: Any
) -> dict[str, Any]:
    containers = [] if state is None else [{"name": "task", "image": "team/x:1", "state": state}]
    meta = {"name": "p-0", **({"deletionTimestamp": "2023-11-14T22:13:20Z"} if deleted else {})}
    return {
        "metadata": meta, "spec": {"nodeName": "node-1"},
        "status": {"phase": phase, **({"containerStatuses": containers} if containers else {}), **status},
    }  # fmt: skip


def condition(kind: str, status: str, reason: str, message: str = "") -> list[dict[str, str]]:
    return [{"type": kind, "status": status, "reason": reason, "message": message}]


def disrupted(why: str) -> list[dict[str, str]]:
    return condition("DisruptionTarget", "True", why)


NO_NODE = "0/3 nodes are available: 1 node(s) had untolerated taint {gpu: }, 2 Insufficient nvidia.com/gpu."
WAITS: list[tuple[dict[str, Any], Reason | None, str]] = [
    (pod(conditions=condition("PodScheduled", "False", "Unschedulable", NO_NODE)), Reason.UNSCHEDULABLE, NO_NODE),
    (pod(conditions=condition("PodScheduled", "False", "SchedulerError", "boom")), Reason.POD_NOT_READY, "boom"),
    *(
        (pod(state={"waiting": {"reason": code, "message": "x"}}), Reason.IMAGE_PULL_FAILED, "team/x:1 cannot be pulled")
        for code in sorted(reasons.PULLING)
    ),
    (
        pod(state={"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "x" not found'}}),
        Reason.POD_NOT_READY, 'CreateContainerConfigError: the container cannot be made of pod p-0: secret "x" not found',
    ),
    (pod(state={"waiting": {"reason": "ContainerCreating"}}), None, ""),
    (pod("Running", state={"running": {}}), None, ""),
    (pod(), None, ""),
]  # fmt: skip


@pytest.mark.parametrize(("given", "reason", "words"), WAITS)
def test_why_a_pod_does_not_run(given: dict[str, Any], reason: Reason | None, words: str) -> None:
    found = reasons.not_running(given)
    assert (None if found is None else found.reason) is reason
    assert words in ("" if found is None else found.message)


def test_the_clusters_warnings_tell_what_a_status_does_not() -> None:
    events = [
        {
            "reason": "FailedMount",
            "message": 'claim "data" not found',
            "lastTimestamp": "2023-11-14T22:13:21Z",
        },
        {"reason": "Unrelated", "message": "x", "lastTimestamp": "2023-11-14T22:13:22Z"},
    ]
    found = reasons.not_running(pod(state={"waiting": {"reason": "ContainerCreating"}}), events)
    assert found is not None
    assert 'FailedMount: claim "data" not found' in found.message


LOSSES: list[tuple[dict[str, Any], Reason | None]] = [
    (pod("Failed", reason="Evicted", message="The node was low on resource: memory."), Reason.EVICTED),
    (
        pod("Running", conditions=disrupted("EvictionByEvictionAPI"), deleted=True),
        Reason.EVICTED,
    ),
    (
        pod("Running", conditions=disrupted("PreemptionByScheduler"), deleted=True),
        Reason.EVICTED,
    ),
    (
        pod("Running", conditions=disrupted("DeletionByTaintManager"), deleted=True),
        Reason.NODE_LOST,
    ),
    (pod("Failed", conditions=disrupted("DeletionByPodGC")), Reason.NODE_LOST),
    (pod("Failed", conditions=disrupted("TerminationByKubelet")), Reason.EVICTED),
    (
        pod("Failed", reason="Terminated", message="It was terminated in response to node shutdown."),
        Reason.NODE_LOST,
    ),
    (pod("Failed", reason="UnexpectedAdmissionError", message="Allocate failed"), Reason.EVICTED),
    (pod("Running", deleted=True), Reason.POD_DELETED),
    (pod("Running"), None),
    (pod("Failed", state={"terminated": {"exitCode": 1}}), None),
    (pod("Running", conditions=condition("DisruptionTarget", "False", "EvictionByEvictionAPI")), None),
]


@pytest.mark.parametrize(("given", "reason"), LOSSES)
def test_how_a_pod_was_lost(given: dict[str, Any], reason: Reason | None) -> None:
    found = reasons.lost(given)
    assert (None if found is None else found.reason) is reason


@pytest.mark.parametrize(
    ("said", "without"),
    [
        ('exec: "python3": executable file not found in $PATH: unknown', True),
        ('exec: "python3": stat python3: no such file or directory', True),
        ('exec: "other": executable file not found in $PATH', False),
        ("permission denied", False),
    ],
)
def test_an_image_without_python_is_known_by_the_runtimes_words(said: str, without: bool) -> None:
    ended = {"terminated": {"exitCode": 128, "reason": "StartError", "message": said}}
    assert reasons.has_no_python(pod("Failed", state=ended)) is without
    assert not reasons.has_no_python(
        pod("Failed", state={"terminated": {"exitCode": 128, "reason": "Error", "message": said}})
    )


def test_a_pull_that_waits_says_the_same_as_one_that_failed() -> None:
    said = 'Back-off pulling image "team/x:1": ErrImagePull: rpc error: not found'
    waits = reasons.not_running(pod(state={"waiting": {"reason": "ImagePullBackOff", "message": said}}))
    failed = reasons.not_running(pod(state={"waiting": {"reason": "ErrImagePull", "message": "rpc error: not found"}}))
    assert waits == failed


# nodes


def node(name: str = "n", *, ready: str = "True", since: str = "2023-11-14T22:00:00Z", **spec: Any) -> dict[str, Any]:
    labels = spec.pop("labels", {})
    free = {"cpu": "7910m", "memory": "32Gi", **spec.pop("free", {})}
    return {
        "metadata": {"name": name, "labels": labels}, "spec": spec,
        "status": {"allocatable": free, "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": since}]},
    }  # fmt: skip


def asks(
    node_name: str = "n", *, labels: dict[str, str] | None = None, phase: str = "Running", **requests: str
) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "namespace": "other", "labels": labels or {}}, "status": {"phase": phase},
        "spec": {"nodeName": node_name, "containers": [{"resources": {"requests": requests}}, {}]},
    }  # fmt: skip


def test_what_others_have_asked_for_is_not_given_away() -> None:
    pods = [asks(cpu="910m", memory="2Gi"), asks(cpu="4", phase="Succeeded"), asks("m", cpu="4")]
    (found,) = nodes.capacity([node()], pods, SETTINGS)
    assert (found.cpu_milli, found.memory_bytes) == (7000, 30 * GIB)


def test_the_platforms_own_pods_are_counted_by_the_platform() -> None:
    own = asks(cpu="4", labels={"danlu.io/platform": "danlu"})
    own["metadata"]["namespace"] = "jobs"
    elsewhere = asks(cpu="1", labels={"danlu.io/platform": "danlu"})  # anybody can set a label in a namespace of theirs
    (found,) = nodes.capacity([node()], [own, elsewhere], SETTINGS)
    assert found.cpu_milli == 6910


def test_starters_and_overhead_count_as_the_scheduler_counts_them() -> None:
    one = asks(cpu="1")
    one["spec"] |= {
        "initContainers": [
            {"resources": {"requests": {"cpu": "3"}}},
            {"restartPolicy": "Always", "resources": {"requests": {"cpu": "500m"}}},
        ],
        "overhead": {"cpu": "100m"},
    }
    (found,) = nodes.capacity([node(free={"cpu": "8"})], [one], SETTINGS)
    assert found.cpu_milli == 8000 - 3100


@pytest.mark.parametrize(
    "closed",
    [
        {"ready": "False"}, {"ready": "Unknown"}, {"unschedulable": True},
        {"taints": [{"key": "gpu", "effect": "NoSchedule"}]}, {"taints": [{"key": "gpu", "effect": "NoExecute"}]},
    ],
)  # fmt: skip
def test_a_node_that_takes_no_pods_has_nothing(closed: dict[str, Any]) -> None:
    (found,) = nodes.capacity([node(**closed)], [], SETTINGS)
    assert (found.cpu_milli, found.gpus) == (0, ())


@pytest.mark.parametrize(
    ("toleration", "opens"),
    [
        ({"operator": "Exists"}, True),
        ({"key": "gpu", "operator": "Exists"}, True),
        ({"key": "gpu", "value": "yes"}, True),
        ({"key": "gpu", "operator": "Equal", "value": "no"}, False),
        ({"key": "gpu", "operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "other", "operator": "Exists"}, False),
    ],
)
def test_a_taint_is_tolerated_as_kubernetes_has_it(toleration: dict[str, str], opens: bool) -> None:
    tainted = node(taints=[{"key": "gpu", "value": "yes", "effect": "NoSchedule"}])
    (found,) = nodes.capacity([tainted], [], SETTINGS, [toleration])
    assert (found.cpu_milli > 0) is opens


@pytest.mark.parametrize(
    ("product", "kind"),
    [("NVIDIA-H100-PCIe", "h100"), ("NVIDIA-A100-SXM4-40GB", "nvidia-a100-sxm4-40gb"), ("", "gpu"), ("!!", "gpu")],
)
def test_gpus_have_the_platforms_name_of_their_kind(product: str, kind: str) -> None:
    labels = {"nvidia.com/gpu.product": product, "nvidia.com/gpu.memory": "81920", "topology.kubernetes.io/zone": "z1"}
    (found,) = nodes.capacity(
        [node(free={"nvidia.com/gpu": "4"}, labels=labels)], [asks(**{"nvidia.com/gpu": "1"})], SETTINGS
    )
    assert [(gpu.index, gpu.kind, gpu.memory_bytes) for gpu in found.gpus] == [(n, kind, 80 * GIB) for n in range(3)]
    assert found.pool == "z1"


@pytest.mark.parametrize(
    ("given", "lost"),
    [
        (node(), False),
        (node(ready="Unknown", since="2023-11-14T22:12:30Z"), False),  # 50 s
        (node(ready="Unknown", since="2023-11-14T22:12:10Z"), True),  # 70 s
        (node(ready="False", since="2023-11-14T22:12:10Z"), True),
        (node(taints=[{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]), True),
    ],
)
def test_a_node_is_lost_after_a_while(given: dict[str, Any], lost: bool) -> None:
    assert nodes.health(given, AT).lost is lost


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1500m", "1.5"),
        ("16Gi", str(16 * GIB)),
        ("1e3", "1000"),
        ("2", "2"),
        ("2E", "2e18"),
        ("", "0"),
        (None, "0"),
        ("x", "0"),
    ],
)
def test_quantities(text: str | None, number: str) -> None:
    assert quantities.amount(text) == quantities.Decimal(number)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2023-11-14T22:13:20Z", AT),
        ("2023-11-14T22:13:20.5Z", AT + SECOND // 2),
        ("", None),
        (None, None),
        ("soon", None),
    ],
)
def test_times(text: object, at: int | None) -> None:
    assert quantities.ns(text) == at


LOG = b"""\
2023-11-14T22:13:20.000000001Z one
2023-11-14T22:13:19Z two
unable to retrieve container logs
2023-11-14T22:13:20.5Z three
2023-11-14T22:13:20.5Z four
2023-11-14T22:13:20.5Z five
2023-11-14T22:13:22Z six
""".splitlines()
STAMPED = b"%d o. one\n%d o. two\n" % (AT + 1, AT + 1) + b"".join(
    b"%d o. %s\n" % (AT + at, said)
    for at, said in ((SECOND // 2, b"three"), (SECOND // 2, b"four"), (SECOND // 2, b"five"), (2 * SECOND, b"six"))
)


@pytest.mark.parametrize("most", [1, 60, 1000])
@pytest.mark.parametrize("looks", [(0, 1, 4, 7), (5, 7), (6, 7, 7)])
def test_a_containers_log_becomes_a_stamped_one_each_line_once(most: int, looks: tuple[int, ...]) -> None:
    taken, found = Taken(), b""
    for end in looks:
        for data, taken in pieces(LOG[:end], taken, most):  # noqa: B020 - from there on the next time
            assert len(data) <= most or data.count(b"\n") == 1
            found += data
            assert taken.offset == len(found)
            assert resumed(len(found), found[-100:]) == taken
            assert resumed(len(found) + 5, found[-100:] + b"17000") == taken
    assert found == STAMPED
