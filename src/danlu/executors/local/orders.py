"""From a launch order to the file that the runner reads: command, environment, folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from danlu.executors.base import LaunchOrder
from danlu.runner import formats

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def order_file(order: LaunchOrder, folder: Path, checkpoints: Path, sdk: Path) -> dict[str, Any]:
    """Returns the content of ``order.json``; paths are where things will be once the folder has its name."""
    job, attempt = order.job, order.attempt
    spec = job.spec
    return {
        "format": formats.FORMAT,
        "attempt_id": attempt.id,
        "job_id": job.id,
        "grace_s": spec.grace,
        "max_time_s": spec.max_time,
        "log_limit_bytes": spec.log_limit,
        "parse_metrics": spec.parse_metrics,
        "checkpoint_dir": str(checkpoints),
        "output_dir": str(folder / "outputs"),
        "tasks": [
            {
                "name": task.name,
                "role": task.role,
                "index": task.index,
                "rank": task.rank,
                "argv": list(spec.argv),
                "env": environment(order, folder, checkpoints, sdk),
                "cwd": str(folder / "work"),
                "node": task.node,
                "resources": task.resources.model_dump(),
                "devices": list(task.devices),
            }
            for task in attempt.tasks
        ],
    }


def environment(order: LaunchOrder, folder: Path, checkpoints: Path, sdk: Path) -> dict[str, str]:
    """Returns the environment of the job's processes, without what depends on the rank.

    What the platform sets wins over the user's variables only where a name is the platform's own (``DANLU_``) or says which
    GPUs are meant. Nothing of the server's own environment is handed on.
    """
    job, attempt, interpreter = order.job, order.attempt, order.interpreter
    variables = dict(job.spec.variables)
    path = variables.get("PATH", SYSTEM_PATH)
    if interpreter is not None:
        path = os.pathsep.join([str(interpreter.bin), path])
    python_path = [p for p in (variables.get("PYTHONPATH"), str(sdk)) if p]
    return {
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "HOME": str(folder / "work"),
        # as many threads as cores that it counts as: jobs side by side whose BLAS sees the whole machine take turns waiting
        "OMP_NUM_THREADS": str(max(1, job.spec.shapes[0].cpu_milli // 1000)),
        **({} if interpreter is None else interpreter.variables),
        **variables,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as the driver's library counts, by which GPUs are given away
        "TMPDIR": str(folder / "tmp"),
        "PATH": path,
        "PYTHONPATH": os.pathsep.join(python_path),
        "DANLU_JOB_ID": job.id,
        "DANLU_JOB_NAME": job.name,
        "DANLU_ATTEMPT_ID": attempt.id,
        "DANLU_ATTEMPT": str(attempt.number),
        "DANLU_PROJECT": job.project,
        "DANLU_URL": order.url,
        "DANLU_TOKEN_FILE": str(folder / "token"),
        "DANLU_OUTPUT_DIR": str(folder / "outputs"),
        "DANLU_CHECKPOINT_DIR": str(checkpoints),
    }
