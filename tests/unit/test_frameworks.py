"""Frameworks: which roles they have, which variables a task finds, whose end is the job's."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from danlu.client.submitting import spec_of
from danlu.domain.frameworks import (
    FRAMEWORKS,
    Gang,
    Means,
    Member,
    describe_roles,
    framework_of,
    meant_roles,
    variables_of,
)
from danlu.domain.roles import RoleSpec
from danlu.domain.specs import JobSpec
from danlu.domain.validation import invalid_spec
from danlu.environments.catalogue import CATALOGUE
from danlu.errors import InvalidSpec


def spec(**fields: Any) -> JobSpec:
    return JobSpec.model_validate({"command": "python train.py", **fields})


def gang(asked: JobSpec, gpus: int = 0) -> Gang:
    """Returns the asked gang with ports 20000, 20001 ... in rank order."""
    return Gang(
        "j1-1",
        tuple(
            Member(task.role, task.index, task.rank, "127.0.0.1", 20_000 + task.rank, cpu_milli=4000, gpus=gpus)
            for task in asked.tasks
        ),
    )


def variables(asked: JobSpec, name: str, gpus: int = 0) -> dict[str, str]:
    rank = next(task.rank for task in asked.tasks if task.name == name)
    whole = gang(asked, gpus)
    return variables_of(asked.convention, whole, whole.members[rank])


# TensorFlow


def test_tf_config_names_everybody_but_the_evaluator() -> None:
    asked = spec(roles={"worker": {"replicas": 2}, "ps": {}, "chief": {}, "evaluator": {}})
    found = json.loads(variables(asked, "worker-1")["TF_CONFIG"])
    assert found == {
        "cluster": {
            "chief": ["127.0.0.1:20000"], "worker": ["127.0.0.1:20001", "127.0.0.1:20002"], "ps": ["127.0.0.1:20003"],
        },
        "task": {"type": "worker", "index": 1},
        "environment": "cloud",
    }  # fmt: skip
    evaluator = json.loads(variables(asked, "evaluator-0")["TF_CONFIG"])
    assert evaluator["task"] == {"type": "evaluator", "index": 0}
    assert "evaluator" not in evaluator["cluster"]
    assert variables(asked, "ps-0")["CLUSTER_SPEC"] == variables(asked, "ps-0")["TF_CONFIG"]


def test_one_task_alone_has_no_tf_config() -> None:
    assert "TF_CONFIG" not in variables(spec(roles={"worker": {}}, env="tensorflow"), "worker-0")


@pytest.mark.parametrize(
    ("roles", "deciding"),
    [
        ({"chief": {}, "worker": {"replicas": 2}, "ps": {}}, ["chief-0"]),
        ({"master": {}, "worker": {}}, ["master-0"]),
        ({"worker": {"replicas": 2}, "ps": {}, "evaluator": {}}, ["worker-0"]),
    ],
)
def test_the_chief_decides_or_worker_0(roles: dict[str, Any], deciding: list[str]) -> None:
    asked = spec(roles=roles, env="tensorflow")
    assert [task.name for task in asked.tasks if task.decides] == deciding


def test_an_evaluator_lingers_and_a_parameter_server_does_not() -> None:
    roles = {"worker": {"replicas": 2}, "ps": {}, "evaluator": {"linger": "15m"}}
    found = {task.name: task.linger_s for task in spec(roles=roles).tasks}
    assert found == {"worker-0": 30, "worker-1": 30, "ps-0": 0, "evaluator-0": 900}


def test_gpus_are_for_those_who_train() -> None:
    asked = spec(roles={"worker": {"replicas": 2}, "ps": {}}, gpu=2)
    assert [need.gpus for need in asked.shapes] == [2, 2, 0]
    assert [need.gpus for need in spec(roles={"worker": {}, "ps": {"gpu": 1}}, gpu=2).shapes] == [2, 1]


# PyTorch


def test_a_node_finds_what_torchrun_reads() -> None:
    asked = spec(roles={"node": {"replicas": 2}}, gpu=2)
    assert asked.convention.name == "pytorch"
    found = variables(asked, "node-1", gpus=2)
    assert {name: value for name, value in found.items() if not name.startswith("DANLU_")} == {
        "OMP_NUM_THREADS": "2", "PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_NPROC_PER_NODE": "2", "PET_MAX_RESTARTS": "3",
        "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": "20000", "PET_LOCAL_ADDR": "127.0.0.1",
        "PET_RDZV_BACKEND": "c10d", "PET_RDZV_ENDPOINT": "127.0.0.1:20000", "PET_RDZV_ID": "j1-1",
        "PET_RDZV_CONF": "is_host=0", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }  # fmt: skip
    assert variables(asked, "node-0")["PET_RDZV_CONF"] == "is_host=1"
    assert variables(asked, "node-0")["PET_NPROC_PER_NODE"] == "1"


def test_a_process_a_task_finds_what_torch_distributed_reads() -> None:
    asked = spec(roles={"master": {}, "worker": {"replicas": 2}}, framework="pytorch")
    found = variables(asked, "worker-1")
    assert (found["RANK"], found["WORLD_SIZE"]) == ("2", "3")
    assert (found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"]) == ("0", "1")
    assert (found["GROUP_RANK"], found["ROLE_RANK"], found["ROLE_WORLD_SIZE"]) == ("2", "1", "2")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("127.0.0.1", "20000")
    assert all(task.decides for task in asked.tasks)


# JAX, MXNet, nothing


def test_jax() -> None:
    asked = spec(roles={"worker": {"replicas": 2}}, env="jax")
    found = variables(asked, "worker-1")
    assert found["JAX_COORDINATOR_ADDRESS"] == "127.0.0.1:20000"
    assert (found["JAX_NUM_PROCESSES"], found["JAX_PROCESS_ID"]) == ("2", "1")


def test_mxnet() -> None:
    asked = spec(roles={"worker": {"replicas": 2}, "server": {}, "scheduler": {}})
    assert [task.name for task in asked.tasks] == ["scheduler-0", "server-0", "worker-0", "worker-1"]
    found = variables(asked, "server-0")
    assert (found["DMLC_ROLE"], found["DMLC_NUM_SERVER"], found["DMLC_NUM_WORKER"]) == ("server", "1", "2")
    assert (found["DMLC_PS_ROOT_URI"], found["DMLC_PS_ROOT_PORT"]) == ("127.0.0.1", "20000")
    assert [task.name for task in asked.tasks if task.decides] == ["worker-0", "worker-1"]


def test_a_scheduler_is_added_where_none_is_named() -> None:
    named = spec(roles={"worker": {}, "server": {}, "scheduler": {}})
    assert [task.name for task in spec(roles={"worker": {}, "server": {}}).tasks] == [task.name for task in named.tasks]


def test_horovods_ranks_meet_at_a_rendezvous_that_is_added() -> None:
    asked = spec(roles={"worker": {"replicas": 2}}, env="horovod", gpu=1)
    assert [task.name for task in asked.tasks] == ["worker-0", "worker-1", "rendezvous-0"]
    assert [need.gpus for need in asked.shapes] == [1, 1, 0]
    assert asked.tasks[2].argv == ("python", "-m", "danlu.runner.rendezvous")
    assert [task.name for task in asked.tasks if task.decides] == ["worker-0", "worker-1"]
    found = variables(asked, "worker-1")
    assert (found["HOROVOD_RANK"], found["HOROVOD_SIZE"], found["HOROVOD_LOCAL_RANK"]) == ("1", "2", "0")
    assert (found["HOROVOD_GLOO_RENDEZVOUS_ADDR"], found["HOROVOD_GLOO_RENDEZVOUS_PORT"]) == ("127.0.0.1", "20002")


def test_mpi_has_a_launcher_that_waits_for_its_workers() -> None:
    asked = spec(command="mpirun python train.py", roles={"worker": {"replicas": 3}}, framework="mpi", gpu=2)
    assert [task.name for task in asked.tasks] == ["launcher-0", "worker-0", "worker-1", "worker-2"]
    assert [need.gpus for need in asked.shapes] == [0, 2, 2, 2]
    assert asked.tasks[0].argv == ("/bin/sh", "-c", "mpirun python train.py")
    assert asked.tasks[1].argv == ("../mpi/agent", "--serve")
    assert [task.name for task in asked.tasks if task.decides] == ["launcher-0"]
    framework = asked.convention
    assert framework.rule("launcher").after == ("worker",)
    hosts = [framework.own_host(task.role, task.index) for task in asked.tasks]
    assert len(set(hosts)) == 4
    members = tuple(
        Member(task.role, task.index, task.rank, host, 20_000 + task.rank, gpus=task.resources.gpus)
        for task, host in zip(asked.tasks, hosts, strict=True)
    )
    whole = Gang("j1-1", members, "/attempt/mpi")
    assert framework.files is not None
    files = framework.files(whole, Means("/usr/bin/python3", "/sdk/danlu/runner", b"x" * 32))
    assert files["hostfile"] == ("".join(f"{host} slots=2\n" for host in hosts[1:]), 0o600)
    assert files["agent"][1] == 0o700
    found = variables_of(framework, whole, members[1])
    assert found["OMPI_MCA_orte_default_hostfile"] == "/attempt/mpi/hostfile"
    assert "DANLU_AGENTS" in found


def test_equal_tasks_find_each_other() -> None:
    found = variables(spec(roles={"b": {}, "a": {"replicas": 2}}, framework="none"), "b-0")
    assert found == {
        "DANLU_ADDRESS": "127.0.0.1:20002", "DANLU_PEER_TASKS": "a-0,a-1,b-0",
        "DANLU_PEERS": "127.0.0.1:20000,127.0.0.1:20001,127.0.0.1:20002",
    }  # fmt: skip


# which framework


@pytest.mark.parametrize(
    ("named", "env", "roles", "expected"),
    [
        (None, "python", ["worker"], "none"),
        (None, "python", ["worker", "ps"], "tensorflow"),
        (None, "python", ["scheduler", "server", "worker"], "mxnet"),
        (None, "python", ["node"], "pytorch"),
        (None, "pytorch", ["worker"], "pytorch"),
        (None, "jax", ["worker"], "jax"),
        (None, "tensorflow-1", ["worker"], "tensorflow"),
        (None, "tensorflow", [], "none"),
        ("none", "tensorflow", ["worker", "ps"], "none"),
        ("jax", "pytorch", ["worker"], "jax"),
    ],
)
def test_what_is_meant(named: str | None, env: str, roles: list[str], expected: str) -> None:
    assert framework_of(named, env, {name: RoleSpec() for name in roles}).name == expected


def test_frameworks_and_catalogue_agree() -> None:
    assert {env for framework in FRAMEWORKS.values() for env in framework.environments} & set(CATALOGUE)
    for name, framework in FRAMEWORKS.items():
        assert framework.name == name
        for role in (*framework.result, *framework.required, *framework.marks):
            assert role in framework.roles


# what is refused


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"roles": {"chief": {"replicas": 2}}}, "tensorflow has exactly one chief"),
        ({"roles": {"chief": {}, "master": {}}}, "two chiefs"),
        ({"roles": {"evaluator": {}}}, "evaluator alone cannot train"),
        ({"roles": {"evaluator": {}, "ps": {}}}, "alone cannot train"),
        ({"roles": {"worker": {}}, "command": None}, r"roles\.worker\.command is missing"),
        ({"command": None}, "command is missing"),
        ({"roles": {"wroker": {}}, "env": "tensorflow-1"}, "did you mean worker"),
        ({"roles": {"worker": {}}, "framework": "tensorfow"}, "did you mean tensorflow"),
        ({"roles": {"scheduler": {}, "worker": {}}}, r"roles\.server is missing"),
        ({"framework": "mpi"}, r"roles\.worker is missing: mpi needs it, for example --role worker=1"),
        ({"framework": "horovod", "roles": {}}, r"roles\.worker is missing: horovod needs it"),
        ({"framework": "mxnet"}, r"roles\.server is missing: mxnet needs it"),
        ({"roles": {"node": {}, "worker": {}}, "framework": "pytorch"}, "excludes other roles"),
        ({"roles": {"ps": {"restarts": 1}, "worker": {}}}, "cannot be started again alone"),
        ({"roles": {"main": {}}, "framework": "none"}, "choose another name"),
        ({"roles": {"worker": {"replicas": 0}}}, "at least 1"),
        ({"roles": {"worker": {"replicas": 1025}}}, "at most 1024"),
        ({"roles": {"a": {"replicas": 1000}, "b": {"replicas": 25}}}, "at most 1,024"),
        (
            {"roles": {"a": {"replicas": 41, "restarts": 100}, "b": {"restarts": 7}}},
            r"4,107 restarts are asked for .* at most 4,096: retry\.attempts",
        ),
        (
            {"roles": {"a": {"replicas": 1024, "variables": {"X": "x" * 20_000}}}},
            r"variables of all 1,024 tasks are 19\.\d MiB together; 16\.0 MiB is the most: .*own variables",
        ),
        ({"roles": {"a": {"replicas": 200}}, "command": "x" * 100_000}, r"of all 200 tasks are 19\.\d MiB"),
        ({"roles": {"Worker": {}}}, "lower-case letters"),
        ({"roles": {"worker": {"gpus": 1}}}, "did you mean gpu"),
        ({"roles": {"worker": {"memory": "x"}}}, "not an amount of memory"),
        ({"roles": {"worker": {"variables": {"DANLU_RANK": "1"}}}}, "its own"),
        ({"roles": {"worker": {}, "ps": {"gpu": 0}}, "gpu_kind": "h100"}, "gpu is 0"),
        ({"roles": []}, "names with values"),
    ],
)  # fmt: skip
def test_wrong_roles_are_refused_in_words(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        spec(**fields)
    error = invalid_spec(caught.value, JobSpec)
    assert re.search(words, f"{error.message} {error.next_step}"), (error.message, error.next_step)


def test_what_all_tasks_share_counts_once() -> None:
    asked = spec(roles={"a": {"replicas": 1024}}, variables={"X": "x" * 131_072, "Y": "y" * 131_072})
    assert asked.started_bytes < 400_000


# for every gang

names = st.from_regex(r"[a-l][a-z]{0,4}", fullmatch=True)


@given(
    st.dictionaries(names, st.integers(1, 6), min_size=1, max_size=5),
    st.sampled_from(["none"]),
)
def test_ranks_are_a_permutation_whatever_the_order_of_the_roles(roles: dict[str, int], framework: str) -> None:
    asked = spec(roles={name: {"replicas": n} for name, n in roles.items()}, framework=framework)
    turned = spec(roles={name: {"replicas": roles[name]} for name in reversed(roles)}, framework=framework)
    assert [task.rank for task in asked.tasks] == list(range(sum(roles.values())))
    assert [task.name for task in asked.tasks] == [task.name for task in turned.tasks]
    assert asked == turned


def test_roles_in_words() -> None:
    assert describe_roles([("worker", 2), ("ps", 1)]) == "2 workers + 1 ps"
    assert describe_roles([("worker", 1), ("ps", 3)]) == "1 worker + 3 ps"


@pytest.mark.parametrize(
    ("fields", "meant"),
    [
        ({"roles": {"wroker": {"replicas": 2}}}, {"wroker": "worker"}),
        ({"roles": {"launhcer": {}, "worker": {}}, "framework": "none"}, {"launhcer": "launcher"}),
        ({"roles": {"learner": {}, "actor": {}, "worker": {}}}, {}),
        ({"roles": {"worker": {}, "ps": {}}}, {}),
        ({}, {}),
    ],
)
def test_a_slip_in_a_role_is_found_where_any_name_is_right(fields: dict[str, Any], meant: dict[str, str]) -> None:
    spec = JobSpec.model_validate({"command": "x", **fields})
    assert meant_roles(spec.convention, spec.roles) == meant


def test_a_role_that_is_given_as_a_field_leads_to_roles() -> None:
    with pytest.raises(InvalidSpec) as caught:
        spec_of({"command": "x", "worker": 2, "ps": {"cpu": 1}, "nodes": 3, "comand": "y"})
    assert 'roles={"worker": {"replicas": 2}, "ps": {"cpu": 1}, "node": {"replicas": 3}}?' in caught.value.next_step
    assert "did you mean command?" in caught.value.next_step
