"""Frameworks' conventions of distributed training, as data: roles, the end of a job, the variables that programs read.

A framework is a row of ``FRAMEWORKS`` and a pure function from the gang to the variables of one task. Nothing else of Danlu
knows any of them.

Sources of the names: TensorFlow's ``TF_CONFIG`` as tf.estimator and tf.distribute read it; ``PET_*`` as torchrun reads its
own flags, ``RANK`` and the like as ``torch.distributed`` reads them; JAX's cluster variables; ps-lite's ``DMLC_*``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from danlu.domain import mpi
from danlu.domain.roles import ALONE, MAX_RESTARTS, MAX_TASKS, RoleSpec
from danlu.domain.validation import nearest, suggestion

LOCALHOST: Final = "127.0.0.1"
"""Where the tasks of one machine find each other."""


@dataclass(frozen=True, slots=True)
class Member:
    """One task of a placed gang, as the others see it. ``port`` is its leased one; ``gpus`` how many it has."""

    role: str
    index: int
    rank: int
    host: str
    port: int
    cpu_milli: int = 1000
    gpus: int = 0

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Gang:
    """All tasks of an attempt, in rank order."""

    attempt_id: str
    members: tuple[Member, ...]
    folder: str = ""
    """the path of the framework's own files, where it has some"""

    def of(self, *roles: str) -> tuple[Member, ...]:
        """Returns the members of these roles, in rank order."""
        return tuple(member for member in self.members if member.role in roles)


@dataclass(frozen=True, slots=True)
class Means:
    """What files of a framework may need: an interpreter of Python 3.8 or later, the runner's modules, 32 random bytes."""

    python: str
    modules: str
    secret: bytes


Variables = Callable[[Gang, Member], dict[str, str]]
Files = Callable[[Gang, Means], dict[str, tuple[str, int]]]
"""A framework's files by name: content and mode."""


@dataclass(frozen=True, slots=True)
class RoleRule:
    """What a framework says of one role.

    Attributes:
        most: so many replicas at most.
        gpu: a task takes the job's ``gpu`` where the role says none.
        linger_s: how long a task may go on once the job's result is known.
        restartable: a task can be started again alone, while the others go on.
        alone: no other role may stand beside it.
        command: what it runs where neither role nor job say so; such a role never runs the job's own command.
        after: roles whose tasks must accept connections before this one starts.
    """

    most: int = MAX_TASKS
    gpu: bool = True
    linger_s: float = 0.0
    restartable: bool = False
    alone: bool = False
    command: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Framework:
    """One framework's convention.

    Attributes:
        name: as in ``framework: NAME``.
        description: one line.
        variables: the variables of one task of a gang.
        roles: its roles in rank order; none: any names, each by the rule ``RoleRule(restartable=True)``.
        result: the first of these roles that a job has decides how it ends; none: all tasks do.
        first: task 0 of that role decides alone; else all of its tasks do.
        required: roles that a gang must have.
        implied: roles that a gang has also where the job does not name them.
        marks: roles by which the framework is known where neither it nor an environment of its own is named.
        environments: catalogue environments that mean it.
        files: what lies in ``Gang.folder``, for the attempt's user alone.
        own_host: where all tasks are on one machine, the loopback address of a task of this role and index.
    """

    name: str
    description: str
    variables: Variables
    roles: Mapping[str, RoleRule] = field(default_factory=dict)
    result: tuple[str, ...] = ()
    first: bool = False
    required: tuple[str, ...] = ()
    implied: Mapping[str, RoleSpec] = field(default_factory=dict)
    marks: frozenset[str] = frozenset()
    environments: tuple[str, ...] = ()
    files: Files | None = None
    own_host: Callable[[str, int], str] = lambda _role, _index: LOCALHOST

    def rule(self, role: str) -> RoleRule:
        """Returns what holds for a role."""
        return self.roles.get(role, ANY_ROLE)

    def ordered(self, roles: Mapping[str, RoleSpec]) -> list[str]:
        """Returns the names of a job's roles in rank order: the framework's own order, then by name."""
        own = list(self.roles)
        return sorted(roles, key=lambda name: (own.index(name) if name in own else len(own), name))

    def decides(self, roles: Mapping[str, RoleSpec], role: str, index: int) -> bool:
        """Whether the end of this task is part of the job's result."""
        leading = next((name for name in self.result if name in roles), None)
        if leading is None:
            return True
        return role == leading and (index == 0 or not self.first)


ANY_ROLE: Final = RoleRule(restartable=True)


def _common(gang: Gang, me: Member) -> dict[str, str]:
    """Returns what every task of a gang finds, whatever its framework."""
    return {
        "DANLU_ADDRESS": me.address,
        "DANLU_PEERS": ",".join(member.address for member in gang.members),
        "DANLU_PEER_TASKS": ",".join(f"{member.role}-{member.index}" for member in gang.members),
    }


def _nothing(_gang: Gang, _me: Member) -> dict[str, str]:
    return {}


def _tensorflow(gang: Gang, me: Member) -> dict[str, str]:
    """``TF_CONFIG``; the evaluator is never in its cluster, and one task alone has none.

    ``environment`` is what programs of the time of tf.contrib.learn look for, ``CLUSTER_SPEC`` what custom containers of
    Cloud ML Engine find beside it.
    """
    cluster: dict[str, list[str]] = {}
    for member in gang.members:
        if member.role != "evaluator":
            cluster.setdefault(member.role, []).append(member.address)
    if len(gang.members) == 1:
        return {}
    text = json.dumps(
        {"cluster": cluster, "task": {"type": me.role, "index": me.index}, "environment": "cloud"}, sort_keys=True
    )
    return {"TF_CONFIG": text, "CLUSTER_SPEC": text}


PYTORCH_RESTARTS: Final = 3


def _pytorch(gang: Gang, me: Member) -> dict[str, str]:
    """For role ``node`` torchrun's own flags as ``PET_*``, so that a bare ``torchrun train.py`` finds its peers.

    For other roles, where each task is one process, what ``torch.distributed`` reads. A task sees its own GPUs alone, counted
    from 0; so each is its own node, and its local rank is 0.
    """
    first = gang.members[0]
    if me.role == "node":
        processes = max(1, me.gpus)
        return {
            "OMP_NUM_THREADS": str(max(1, me.cpu_milli // 1000 // processes)),
            "PET_NNODES": str(len(gang.members)),
            "PET_NODE_RANK": str(me.rank),
            "PET_NPROC_PER_NODE": str(processes),
            "PET_MAX_RESTARTS": str(PYTORCH_RESTARTS),
            "PET_MASTER_ADDR": first.host,
            "PET_MASTER_PORT": str(first.port),
            "PET_LOCAL_ADDR": me.host,
            "PET_RDZV_BACKEND": "c10d",
            "PET_RDZV_ENDPOINT": first.address,
            "PET_RDZV_ID": gang.attempt_id,
            "PET_RDZV_CONF": f"is_host={int(me.rank == 0)}",
            # a store for every round: torchrun keeps one for all, where ranks that are started again find the addresses of
            # those before them, and wait for ever
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }
    size, rank = str(len(gang.members)), str(me.rank)
    role_size = str(len(gang.of(me.role)))
    return {
        "RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
        "GROUP_RANK": rank, "GROUP_WORLD_SIZE": size, "ROLE_RANK": str(me.index), "ROLE_WORLD_SIZE": role_size,
        "MASTER_ADDR": first.host, "MASTER_PORT": str(first.port),
        "TORCHELASTIC_RUN_ID": gang.attempt_id, "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "0",
    }  # fmt: skip


def _jax(gang: Gang, me: Member) -> dict[str, str]:
    """What ``jax.distributed.initialize()`` reads; one task alone has none."""
    if len(gang.members) == 1:
        return {}
    return {
        "JAX_COORDINATOR_ADDRESS": gang.members[0].address,
        "JAX_NUM_PROCESSES": str(len(gang.members)),
        "JAX_PROCESS_ID": str(me.rank),
    }


def _mpi_host(role: str, index: int) -> str:
    return mpi.host(index) if role == "worker" else LOCALHOST


def _mpi_slots(gang: Gang) -> int:
    """Returns how many ranks a worker runs: one for each of its GPUs."""
    return max([1, *(worker.gpus for worker in gang.of("worker"))])


def _mpi(gang: Gang, _me: Member) -> dict[str, str]:
    """What MPI's launchers and their daemons read, see domain/mpi.py."""
    loopback = all(member.host.startswith("127.") for member in gang.members)
    return mpi.variables(gang.folder, _mpi_slots(gang), loopback=loopback)


def _mpi_files(gang: Gang, means: Means) -> dict[str, tuple[str, int]]:
    addresses = {worker.host: worker.address for worker in gang.of("worker")}
    agent = f"{means.modules}/agent.py"
    return mpi.files(addresses, _mpi_slots(gang), means.secret, python=means.python, agent=agent)


def _horovod(gang: Gang, me: Member) -> dict[str, str]:
    """What Horovod reads where Gloo connects its ranks: each is the only one of its node, and they meet at the rendezvous.

    The time limit is from the first rank's ``hvd.init()`` to the last one's, and for a peer that says nothing.
    """
    if me.role != "worker":
        return {}
    (rendezvous,) = gang.of("rendezvous")
    workers = gang.of("worker")
    return {
        "HOROVOD_CONTROLLER": "gloo", "HOROVOD_CPU_OPERATIONS": "gloo", "HOROVOD_GLOO_TIMEOUT_SECONDS": "120",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": rendezvous.host, "HOROVOD_GLOO_RENDEZVOUS_PORT": str(rendezvous.port),
        "HOROVOD_HOSTNAME": f"{me.role}-{me.index}", "HOROVOD_RANK": str(me.index), "HOROVOD_SIZE": str(len(workers)),
        "HOROVOD_LOCAL_RANK": "0", "HOROVOD_LOCAL_SIZE": "1",
        "HOROVOD_CROSS_RANK": str(me.index), "HOROVOD_CROSS_SIZE": str(len(workers)),
    } | ({"HOROVOD_GLOO_IFACE": "lo"} if rendezvous.host.startswith("127.") else {})  # fmt: skip


def _mxnet(gang: Gang, me: Member) -> dict[str, str]:
    """What ps-lite reads. Importing mxnet in a task that is no worker serves until the workers have ended."""
    scheduler = gang.of("scheduler")[0]
    return {
        "DMLC_ROLE": me.role,
        "DMLC_PS_ROOT_URI": scheduler.host,
        "DMLC_PS_ROOT_PORT": str(scheduler.port),
        "DMLC_NUM_SERVER": str(len(gang.of("server"))),
        "DMLC_NUM_WORKER": str(len(gang.of("worker"))),
        "DMLC_NODE_HOST": me.host,
    }


_TABLE = (
    Framework(
        name="tensorflow",
        description="TF_CONFIG with chief or master, worker, ps and evaluator",
        variables=_tensorflow,
        roles={
            "chief": RoleRule(most=1),
            "master": RoleRule(most=1),
            "worker": RoleRule(linger_s=30.0, restartable=True),
            "ps": RoleRule(gpu=False),  # it never exits by itself
            "evaluator": RoleRule(most=1, linger_s=60.0, restartable=True),
        },
        result=("chief", "master", "worker"),
        first=True,
        marks=frozenset({"chief", "ps", "evaluator"}),
        environments=("tensorflow", "tensorflow-1", "keras"),
    ),
    Framework(
        name="pytorch",
        description="torchrun on nodes (PET_*), or one process a task (RANK, WORLD_SIZE, MASTER_ADDR)",
        variables=_pytorch,
        roles={"node": RoleRule(alone=True), "master": RoleRule(most=1), "worker": RoleRule()},
        marks=frozenset({"node"}),
        environments=("pytorch",),
    ),
    Framework(
        name="jax",
        description="workers of jax.distributed (JAX_COORDINATOR_ADDRESS)",
        variables=_jax,
        roles={"worker": RoleRule()},
        environments=("jax",),
    ),
    Framework(
        name="mpi",
        description="mpirun in a launcher, which Danlu adds; its ranks run in the workers",
        variables=_mpi,
        roles={"launcher": RoleRule(most=1, gpu=False, after=("worker",)), "worker": RoleRule(command=mpi.WORKER)},
        result=("launcher",),
        required=("worker",),
        implied={"launcher": RoleSpec(cpu=0.25)},
        marks=frozenset({"launcher"}),
        files=_mpi_files,
        own_host=_mpi_host,
    ),
    Framework(
        name="horovod",
        description="workers that meet at a rendezvous, which Danlu adds (HOROVOD_RANK)",
        variables=_horovod,
        roles={
            "worker": RoleRule(after=("rendezvous",)),
            "rendezvous": RoleRule(most=1, gpu=False, command=("python", "-m", "danlu.runner.rendezvous")),
        },
        result=("worker",),
        required=("worker",),
        implied={"rendezvous": RoleSpec(cpu=0.1)},
        marks=frozenset({"rendezvous"}),
        environments=("horovod",),
    ),
    Framework(
        name="mxnet",
        description="scheduler, server and worker of ps-lite (DMLC_*)",
        variables=_mxnet,
        roles={"scheduler": RoleRule(most=1, gpu=False), "server": RoleRule(gpu=False), "worker": RoleRule()},
        result=("worker",),
        required=("server",),
        implied={"scheduler": RoleSpec()},
        marks=frozenset({"scheduler", "server"}),
        environments=("mxnet",),
    ),
    Framework(
        name="none",
        description="equal tasks that find each other by DANLU_RANK, DANLU_WORLD_SIZE and DANLU_PEERS",
        variables=_nothing,
    ),
)

FRAMEWORKS: Final[Mapping[str, Framework]] = {framework.name: framework for framework in _TABLE}
ROLES: Final = tuple(dict.fromkeys(role for framework in _TABLE for role in framework.roles))
"""Every role that some framework knows."""
SURELY: Final = 0.8
"""How much alike a role's name is to one that was meant, where any name is right."""


def framework_of(named: str | None, env: str, roles: Mapping[str, RoleSpec]) -> Framework:
    """Returns the framework that a job means: the one named, else its environment's, else the one that its roles show."""
    if named is not None:
        return FRAMEWORKS[named]
    by_env = next((framework for framework in _TABLE if env in framework.environments), None)
    if by_env is not None and roles:
        return by_env
    return next((framework for framework in _TABLE if framework.marks & roles.keys()), FRAMEWORKS["none"])


def variables_of(framework: Framework, gang: Gang, me: Member) -> dict[str, str]:
    """Returns the variables by which one task finds its place in the gang."""
    return {**_common(gang, me), **framework.variables(gang, me)}


def check_alone(named: str | None, *, has_command: bool) -> None:
    """Raises ValueError where a job without roles names a framework that cannot be without them, or has no command."""
    framework = FRAMEWORKS[named or "none"]
    if framework.required:
        role = framework.required[0]
        raise ValueError(f"roles.{role} is missing: {framework.name} needs it, for example --role {role}=1")
    if not has_command:
        raise ValueError("command is missing")


def check_roles(framework: Framework, roles: Mapping[str, RoleSpec], *, has_command: bool) -> None:
    """Raises ValueError, in a user's words, where a job's roles cannot be what the framework needs.

    ``roles`` has those that the framework adds, too.
    """
    for name, role in roles.items():
        _check_role(framework, name, role, beside=len(roles) - 1, has_command=has_command)
    if {"chief", "master"} <= roles.keys() and framework.name == "tensorflow":
        raise ValueError(
            "roles.chief and roles.master are two chiefs: a TensorFlow cluster has exactly one; keep chief"
        )
    missing = [name for name in framework.required if name not in roles]
    if missing:
        raise ValueError(f"roles.{missing[0]} is missing: {framework.name} needs it, for example --role {missing[0]}=1")
    if framework.result and not any(name in roles for name in framework.result):
        have = " and ".join(roles)
        raise ValueError(
            f"roles: {have} alone cannot train: the result is that of {' or '.join(framework.result)}, and there is none"
        )
    if (count := sum(role.replicas for role in roles.values())) > MAX_TASKS:
        raise ValueError(f"roles: {count:,} tasks are asked for; a job has at most {MAX_TASKS:,}")
    if (count := sum(role.replicas * role.restarts for role in roles.values())) > MAX_RESTARTS:
        raise ValueError(
            f"roles: {count:,} restarts are asked for (replicas times restarts, of all roles); a job has at most "
            f"{MAX_RESTARTS:,}: retry.attempts repeats the whole gang"
        )


def _check_role(framework: Framework, name: str, role: RoleSpec, *, beside: int, has_command: bool) -> None:
    if framework.roles and name not in framework.roles:
        near = suggestion(name, framework.roles)
        known = ", ".join(framework.roles)
        raise ValueError(
            f"roles.{name} is no role of {framework.name}, which has {known}" + (f": {near}" if near else "")
            + "; for roles of your own write framework: none"
        )  # fmt: skip
    if name == ALONE:
        raise ValueError(f"roles.{name}: {ALONE} is the role of a job without roles; choose another name")
    rule = framework.rule(name)
    if role.replicas > rule.most:
        raise ValueError(f"roles.{name}.replicas is {role.replicas}: {framework.name} has exactly one {name}")
    if rule.alone and beside:
        raise ValueError(f"roles.{name} excludes other roles in {framework.name}")
    if role.restarts and not rule.restartable:
        raise ValueError(
            f"roles.{name}.restarts: a {name} of {framework.name} cannot be started again alone; "
            "retry.attempts repeats the whole gang"
        )
    if role.command is None and not has_command and not rule.command:
        raise ValueError(f"roles.{name}.command is missing, and the job has no command")


def meant_roles(framework: Framework, roles: Iterable[str]) -> dict[str, str]:
    """Returns role -> what was probably meant, where the framework takes any name."""
    strange = [] if framework.roles else [name for name in roles if name not in ROLES]
    found = {name: nearest(name, ROLES, cutoff=SURELY) for name in strange}
    return {name: meant for name, meant in found.items() if meant is not None}


def describe_roles(roles: Sequence[tuple[str, int]]) -> str:
    """Returns ``1 ps + 2 workers`` from names and counts."""
    return " + ".join(f"{count} {name if count == 1 or name.endswith('s') else name + 's'}" for name, count in roles)
