"""From a launch order to the file that the runner reads, wherever it runs: command, environment, folders."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.domain.arrays import own_variables, slurm_variables
from danlu.domain.commands import RESERVED_VARIABLES
from danlu.domain.frameworks import Gang, Means, Member, variables_of
from danlu.domain.mpi import WORKER
from danlu.domain.resources import format_bytes
from danlu.domain.specs import TaskSpec
from danlu.errors import LaunchRejected
from danlu.executors.base import LaunchOrder
from danlu.runner import formats

MAX_ORDER_BYTES = 64 << 20
SECRET_BYTES = 32
USER = "danlu"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


Hosts = Callable[[str, int], str]
"""Where the others find the task of a role and index."""


@dataclass(frozen=True, slots=True)
class Folders:
    """Where an attempt's things are: its own folder, the job's checkpoints, what jobs may import of Danlu, its secrets."""

    attempt: Path
    checkpoints: Path
    sdk: Path
    memory: Path | None = None


def order_file(order: LaunchOrder, where: Folders, hosts: Hosts | None = None) -> dict[str, Any]:
    """Returns the content of ``order.json``; paths are where things will be once the folder has its name.

    Without ``hosts`` all tasks are on one machine.
    """
    job, attempt = order.job, order.attempt
    spec, gang = job.spec, gang_of(order, where.attempt, hosts)
    return {
        "format": formats.FORMAT,
        "attempt_id": attempt.id,
        "job_id": job.id,
        "grace_s": spec.grace,
        "max_time_s": spec.max_time,
        "log_limit_bytes": spec.log_limit,
        "parse_metrics": spec.parse_metrics,
        "checkpoint_dir": str(where.checkpoints),
        "output_dir": str(where.attempt / "outputs"),
        "world_size": len(attempt.tasks),
        "tasks": [
            {
                "name": task.name,
                "role": task.role,
                "index": task.index,
                "rank": task.rank,
                "argv": list(asked.argv),
                "env": environment(order, asked, gang, where),
                "cwd": str(where.attempt / "work"),
                "node": task.node,
                "resources": task.resources.model_dump(),
                "devices": list(task.devices),
                "ports": list(task.ports),
                "host_name": task.name if named(asked) and order.image is None else "",
                "host": gang.members[task.rank].host,
                "decides": asked.decides,
                "linger_s": asked.linger_s,
                "restarts": asked.spec.restarts,
                "after": [one.address for one in gang.of(*asked.framework.rule(task.role).after)],
            }
            for task, asked in zip(attempt.tasks, spec.tasks, strict=True)
        ],
    }


def named(asked: TaskSpec) -> bool:
    """Whether a task has a host name of its own: Open MPI takes workers of one name for one."""
    return asked.argv == WORKER


def order_text(content: dict[str, Any]) -> str:
    """Returns the file's text, with what all tasks have alike in it once.

    Raises:
        LaunchRejected: it is larger than the server would read again.
    """
    formats.share(content)
    text = json.dumps(content)
    if len(text) > MAX_ORDER_BYTES:
        raise LaunchRejected(
            f"what its {len(content['tasks']):,} tasks are started with is {format_bytes(len(text))}, and "
            f"{format_bytes(MAX_ORDER_BYTES)} is the most: take fewer tasks, or smaller variables and commands"
        )
    return text


def gang_of(order: LaunchOrder, folder: Path, hosts: Hosts | None = None) -> Gang:
    """Returns the gang as its tasks see each other; ``folder`` is the attempt's. Without ``hosts``: on one machine."""
    framework = order.job.spec.convention
    host = framework.own_host if hosts is None else hosts
    return Gang(
        order.attempt.id,
        tuple(
            Member(
                task.role, task.index, task.rank, host(task.role, task.index),
                task.ports[0] if task.ports else 0, cpu_milli=task.resources.cpu_milli, gpus=len(task.devices),
            )
            for task in order.attempt.tasks
        ),
        str(folder / framework.name),
    )  # fmt: skip


def framework_files(order: LaunchOrder, where: Folders, hosts: Hosts | None = None) -> dict[str, tuple[str, int]]:
    """Returns what the framework wants in the attempt's folder, by path: content and mode."""
    framework = order.job.spec.convention
    if not order.job.spec.roles or framework.files is None:
        return {}
    python = "python3" if order.interpreter is None else str(order.interpreter.bin / "python")
    means = Means(python, str(where.sdk / "danlu" / "runner"), os.urandom(SECRET_BYTES))
    files = framework.files(gang_of(order, where.attempt, hosts), means)
    return {f"{framework.name}/{name}": content for name, content in files.items()}


def environment(order: LaunchOrder, asked: TaskSpec, gang: Gang, where: Folders) -> dict[str, str]:
    """Returns the environment of one task's processes, without what the runner knows best (its rank, its GPUs).

    What the platform sets wins over the user's variables only where a name is the platform's own (``DANLU_``) or says which
    GPUs are meant; what the framework's convention sets does not. Nothing of the server's own environment is handed on.
    """
    job, attempt, interpreter = order.job, order.attempt, order.interpreter
    variables = asked.variables
    path = variables.get("PATH", SYSTEM_PATH)
    if interpreter is not None:
        path = os.pathsep.join([str(interpreter.bin), path])
    python_path = [p for p in (variables.get("PYTHONPATH"), str(where.sdk)) if p]
    connected = variables_of(asked.framework, gang, gang.members[asked.rank]) if job.spec.roles else {}
    array, identity = job.array, job.array_id or ""
    sbatch = {} if array is None or job.spec.array is None else slurm_variables(identity, array, job.spec.array)
    platforms = {name: value for name, value in connected.items() if name.startswith(RESERVED_VARIABLES)}
    return {
        # the job's user may have no entry in the machine's list of users, and libraries ask for a name
        "USER": USER,
        "LOGNAME": USER,
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "HOME": str(where.attempt / "work"),
        # as many threads as cores that it counts as: jobs side by side whose BLAS sees the whole machine take turns waiting
        "OMP_NUM_THREADS": str(max(1, asked.resources.cpu_milli // 1000)),
        **({} if interpreter is None else interpreter.variables),
        **sbatch,
        **connected,
        **variables,
        **platforms,
        **({} if array is None else own_variables(identity, array)),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as the driver's library counts, by which GPUs are given away
        "TMPDIR": str(where.attempt / "tmp"),
        "PATH": path,
        "PYTHONPATH": os.pathsep.join(python_path),
        "DANLU_JOB_ID": job.id,
        "DANLU_JOB_NAME": job.name,
        "DANLU_ATTEMPT_ID": attempt.id,
        "DANLU_ATTEMPT": str(attempt.number),
        "DANLU_PROJECT": job.project,
        "DANLU_URL": order.url,
        "DANLU_TOKEN_FILE": str(where.attempt / "token"),
        "DANLU_OUTPUT_DIR": str(where.attempt / "outputs"),
        "DANLU_CHECKPOINT_DIR": str(where.checkpoints),
    }
