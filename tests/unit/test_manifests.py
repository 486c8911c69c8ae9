"""What an attempt's objects are, compared with files that a reader can judge. A file that is not there is written."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from danlu.domain.environments import MOUNTED, Archive, PodEnvironment
from danlu.domain.jobs import Task
from danlu.domain.secrets import HandedSecret
from danlu.domain.trees import address_of
from danlu.errors import InvalidRequest, LaunchRejected
from danlu.executors.base import LaunchOrder
from danlu.executors.kubernetes import bare, manifests, template
from danlu.executors.kubernetes.manifests import PodSettings
from danlu.executors.kubernetes.template import PodTemplate
from tests.factories import Ids, make_attempt, make_job

FOLDER = Path(__file__).with_name("manifests")
SETTINGS = PodSettings(
    namespace="jobs", platform="danlu", url="https://danlu.danlu:7070", image="registry.test/python:3.12",
    runner="danlu-runner-0123456789abcdef", gpu_kinds={"h100": ("NVIDIA-H100-PCIe", "NVIDIA-H100-80GB-HBM3")},
)  # fmt: skip
TEMPLATE = {
    "node_selector": {"pool": "training"}, "tolerations": [{"key": "gpu", "operator": "Exists"}], "priority_class": "batch",
    "image_pull_secrets": ["registry"], "labels": {"cost-center": "42"}, "annotations": {"sidecar.istio.io/inject": "false"},
    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
    "mounts": [{"name": "data", "mountPath": "/data", "readOnly": True}],
}  # fmt: skip


def order(*, nodes: tuple[str, ...] = ("node-1",), handed: tuple[HandedSecret, ...] = (), **spec: Any) -> LaunchOrder:
    job = make_job(Ids()(), spec={"command": ["python", "train.py"], **spec})
    tasks = tuple(
        Task(
            role=asked.role, index=asked.index, rank=asked.rank, node=nodes[asked.rank % len(nodes)],
            resources=asked.resources, ports=(20_000 + asked.rank,) if job.spec.roles else (),
        )
        for asked in job.spec.tasks
    )  # fmt: skip
    return LaunchOrder(
        job=job, attempt=make_attempt(job, tasks=tasks), interpreter=None, project_number=3, url="https://danlu.test",
        token="danlu_attempt_secret", secrets=handed,
    )  # fmt: skip


def objects(given: LaunchOrder, added: PodTemplate | None = None) -> list[dict[str, Any]]:
    return manifests.rest(given, SETTINGS, added or PodTemplate(), owner_uid="uid-of-the-secret")


GANG = {"ps": {"replicas": 1, "gpu": 0, "cpu": 1}, "worker": {"replicas": 3, "gpu": 2, "cpu": 8, "memory": "32GiB"}}


@pytest.mark.parametrize(
    ("name", "given", "added"),
    [
        ("one-task", order(), PodTemplate()),
        ("limits", order(cpu=2, memory="4GiB", image="ghcr.io/team/train:1", grace=120), PodTemplate()),
        ("gang", order(roles=GANG, framework="tensorflow", gpu_kind="h100", nodes=("a", "b")), PodTemplate()),
        ("template", order(), PodTemplate.model_validate(TEMPLATE).checked()),
    ],
)
def test_the_objects_are_those_of_the_file(name: str, given: LaunchOrder, added: PodTemplate) -> None:
    path = FOLDER / f"{name}.yaml"
    found = objects(given, added)
    if not path.exists():
        path.write_text(yaml.safe_dump_all(found, sort_keys=False))
        pytest.fail(f"{path} was not there and is written: read it, and keep it if it is right")
    assert found == list(yaml.safe_load_all(path.read_text()))


def test_the_secret_has_the_order_and_no_secret_of_the_user() -> None:
    handed = (HandedSecret(variable="HF_TOKEN", value="hf_0123456789"),)
    given = order(roles=GANG, framework="tensorflow", handed=handed)
    secret = manifests.secret(given, SETTINGS)
    data = {name: base64.b64decode(text).decode() for name, text in secret["data"].items()}
    assert data["token"] == "danlu_attempt_secret"
    assert "hf_0123456789" not in json.dumps([secret, objects(given), data])
    said = json.loads(data["order.json"])
    assert [(task["name"], task["devices"]) for task in said["tasks"]] == [
        ("worker-0", None), ("worker-1", None), ("worker-2", None), ("ps-0", None),
    ]  # fmt: skip
    assert said["tasks"][0]["host"] == f"{given.attempt.id}-worker-0.{given.attempt.id}"
    assert said["pod"]["url"] == "https://danlu.danlu:7070"


def test_what_the_executor_has_to_know_comes_back() -> None:
    given = order(roles=GANG, framework="tensorflow", nodes=("a", "b"))
    known = manifests.unpacked(manifests.secret(given, SETTINGS)["metadata"]["annotations"][manifests.TASKS])
    assert [(task["name"], task["rank"], task["node"], task["ports"]) for task in known["tasks"]] == [
        ("worker-0", 0, "a", [20000]), ("worker-1", 1, "b", [20001]),
        ("worker-2", 2, "a", [20002]), ("ps-0", 3, "b", [20003]),
    ]  # fmt: skip
    assert [task["decides"] for task in known["tasks"]] == [True, False, False, False]


@pytest.mark.parametrize("text", ["", "AAAA", "!", base64.b64encode(b"x").decode(), manifests.packed({"tasks": 3})])
def test_an_annotation_of_somebody_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"danlu\.io/tasks"):
        manifests.unpacked(text)


def test_names_are_never_too_long() -> None:
    longest = order(roles={"a" * 31: {"replicas": 1000}}, framework="none", cpu=0.1)
    with pytest.raises(LaunchRejected, match="would have a name of 65 characters"):
        objects(longest)
    fits = order(roles={"a" * 29: {"replicas": 1000}}, framework="none", cpu=0.1)
    assert len(objects(fits)) == 2


def test_what_is_larger_than_kubernetes_keeps_is_refused() -> None:
    variables = {"X": "x" * 100_000}
    roles = {f"r{n}": {"replicas": 1, "variables": {f"Y{n}": "y" * 100_000}} for n in range(11)}
    with pytest.raises(LaunchRejected, match=r"Kubernetes keeps 1\.0 MiB at most"):
        manifests.secret(order(roles=roles, framework="none", variables=variables, cpu=0.1), SETTINGS)


def test_a_thousand_tasks_fit() -> None:
    given = order(roles={"worker": {"replicas": 1000}}, framework="tensorflow", cpu=0.1)
    secret = manifests.secret(given, SETTINGS)
    assert len(secret["metadata"]["annotations"][manifests.TASKS]) < 20_000


# without the runner


def test_a_job_made_anew_is_the_users_command_alone() -> None:
    given = order(variables={"LR": "0.1"})
    (made,) = objects(given)
    anew = bare.job(made, manifests.content(given, SETTINGS))
    pod = anew["spec"]["template"]["spec"]
    container = pod["containers"][0]
    variables = {one["name"]: one["value"] for one in container["env"]}
    assert (container["command"], variables["LR"], variables["DANLU_TASK"]) == (["python", "train.py"], "0.1", "main-0")
    assert "PATH" not in variables
    assert {one["name"] for one in pod["volumes"]}.isdisjoint({"danlu-order", "danlu-runner"})
    assert anew["spec"]["backoffLimit"] == 0
    assert pod["securityContext"] == made["spec"]["template"]["spec"]["securityContext"]


@pytest.mark.parametrize(
    ("spec", "word"),
    [({"roles": GANG, "framework": "tensorflow"}, "connected"), ({"code": "sha256:" + "0" * 64}, "code")],
)
def test_what_needs_the_runner_cannot_do_without(spec: dict[str, Any], word: str) -> None:
    assert word in bare.why_not(manifests.tasks(order(**spec)))


# templates


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"default": {"command": ["sh"]}}, "command"),
        ({"default": {"labels": {"danlu.io/attempt": "x"}}}, "the platform's own"),
        ({"default": {"mounts": [{"name": "x", "mountPath": "/danlu/order"}]}}, "would hide"),
        ({"default": {"mounts": [{"name": "x", "mountPath": "/data/../danlu"}]}}, "no absolute path"),
        ({"default": {"mounts": [{"name": "x", "mountPath": "/data"}]}}, "names no volume"),
        ({"default": {"volumes": [{"name": "danlu-order", "emptyDir": {}}]}}, "the platform's own"),
        ({"default": {"volumes": [{"name": "host", "hostPath": {"path": "/"}}]}}, "host_paths"),
        ({"default": {"volumes": [{"emptyDir": {}}]}}, "name of its own"),
        ({"projects": {"a": {"priority_class": 3}}}, "priority_class"),
        (["default"], "no mapping"),
    ],
)
def test_a_template_that_cannot_be_is_refused_when_it_is_read(wrong: object, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        template.parse(wrong, "templates.yaml")


def test_a_projects_own_template_stands_in_the_place_of_the_default() -> None:
    found = template.parse({"default": {"priority_class": "low"}, "projects": {"a": {"scheduler": "own"}}}, "x.yaml")
    assert (found.of("b").priority_class, found.of("a").priority_class, found.of("a").scheduler) == ("low", "", "own")
    assert template.parse(None, "x.yaml").of("a") == PodTemplate()


@pytest.mark.parametrize(("cpu", "most"), [(0.01, "500m"), (0.5, "500m"), (2, "2000m")])
def test_a_runner_can_begin_however_little_its_task_asks_for(cpu: float, most: str) -> None:
    """What is asked of the node stays what the job asks for."""
    archive = Archive(address=address_of(b"x"), size_bytes=1, unpacked_bytes=2, files=3)
    own = PodEnvironment(name="pytorch", digest="d" * 64, archive=archive)
    (job,) = objects(order(cpu=cpu).model_copy(update={"environment": own, "interpreter": own.interpreter}))
    spec = job["spec"]["template"]["spec"]
    for container in (*spec["initContainers"], *spec["containers"]):
        found = container["resources"]
        assert (found["requests"]["cpu"], found["limits"]["cpu"]) == (f"{round(cpu * 1000)}m", most)


def test_a_job_sees_no_environment_but_its_own() -> None:
    archive = Archive(address=address_of(b"x"), size_bytes=1, unpacked_bytes=2, files=3)
    own = PodEnvironment(name="pytorch", digest="d" * 64, archive=archive)
    (job,) = objects(order().model_copy(update={"environment": own, "interpreter": own.interpreter}))
    spec = job["spec"]["template"]["spec"]
    (first,), (task,) = spec["initContainers"], spec["containers"]
    mounts = [
        [mount for mount in one["volumeMounts"] if mount["name"] == manifests.ENVIRONMENTS] for one in (first, task)
    ]
    assert mounts[0] == [{"name": manifests.ENVIRONMENTS, "mountPath": MOUNTED}]
    pod = f"{job['metadata']['labels'][manifests.ATTEMPT]}-main-$(JOB_COMPLETION_INDEX)"
    held = {"mountPath": f"{MOUNTED}/.held", "subPathExpr": f".uses/{own.digest}/{pod}"}
    own_one = {"mountPath": f"{MOUNTED}/{own.digest}", "subPath": own.digest}
    assert mounts[1] == [{"name": manifests.ENVIRONMENTS, "readOnly": True, **one} for one in (own_one, held)]
    assert first["command"][-2:] == ["environment", pod]
